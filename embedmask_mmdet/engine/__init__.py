"""What stands around training and testing: checks of input and losses, and checkpoints."""

from embedmask_mmdet.engine.checkpoint import CheckpointError
from embedmask_mmdet.engine.checks import EmbedMaskCheckHook, InputError
from embedmask_mmdet.engine.compiling import CompileModelOnlyHook
from embedmask_mmdet.engine.finite import FiniteLossHook
from embedmask_mmdet.engine.resume import AtomicCheckpointHook

__all__ = [
    'AtomicCheckpointHook',
    'CheckpointError',
    'CompileModelOnlyHook',
    'EmbedMaskCheckHook',
    'FiniteLossHook',
    'InputError',
]
