"""EmbedMask for MMDetection: importing this package registers its parts and lets its checkpoints load.

Where MMEngine has not been imported yet, this happens as soon as it is. ``embedmask_mmdet.runtime`` does not need it.
"""

import importlib
from types import ModuleType

from embedmask_mmdet.registration import register_when_used

__all__ = ['engine', 'models']
__version__ = '0.5.0'


def __getattr__(name: str) -> ModuleType:
    if name not in (*__all__, 'ops'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return importlib.import_module(f'{__name__}.{name}')


register_when_used()
