"""What stands around training and testing: checks of the input, and loading of checkpoints."""

from embedmask_mmdet.engine.checkpoint import CheckpointError
from embedmask_mmdet.engine.checks import EmbedMaskCheckHook, InputError

__all__ = ['CheckpointError', 'EmbedMaskCheckHook', 'InputError']
