"""MMEngine hooks for training and testing, and safe checkpoint loading, which importing this package turns on."""

from embedmask_mmdet.engine.check_hook import EmbedMaskCheckHook
from embedmask_mmdet.engine.checkpoint import load_from_local
from embedmask_mmdet.engine.compiling import EmbedMaskCompileHook
from embedmask_mmdet.engine.finite import EmbedMaskFiniteLossHook
from embedmask_mmdet.engine.packages import EmbedMaskPackagesHook
from embedmask_mmdet.engine.resume import EmbedMaskCheckpointHook

__all__ = [
    'EmbedMaskCheckHook',
    'EmbedMaskCheckpointHook',
    'EmbedMaskCompileHook',
    'EmbedMaskFiniteLossHook',
    'EmbedMaskPackagesHook',
    'load_from_local',
]
