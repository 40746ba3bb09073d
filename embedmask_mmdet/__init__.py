"""EmbedMask for MMDetection: importing this package registers its parts and lets its checkpoints load."""

from embedmask_mmdet import engine, models

__all__ = ['engine', 'models']
__version__ = '0.2.0'
