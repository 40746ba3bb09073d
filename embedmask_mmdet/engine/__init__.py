"""What stands around training and testing: checks of input and losses, and checkpoints."""

from embedmask_mmdet.engine.checkpoint import CheckpointError
from embedmask_mmdet.engine.checks import EmbedMaskCheckHook, EmbedMaskPackagesHook, InputError
from embedmask_mmdet.engine.compiling import EmbedMaskCompileHook
from embedmask_mmdet.engine.finite import EmbedMaskFiniteLossHook
from embedmask_mmdet.engine.resume import EmbedMaskCheckpointHook

__all__ = [
    'CheckpointError',
    'EmbedMaskCheckHook',
    'EmbedMaskCheckpointHook',
    'EmbedMaskCompileHook',
    'EmbedMaskFiniteLossHook',
    'EmbedMaskPackagesHook',
    'InputError',
]
