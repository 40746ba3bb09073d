"""Hooks and checks around training and testing; importing it makes MMEngine's checkpoints load safely."""

from embedmask_mmdet.engine.checkpoint import load_from_local
from embedmask_mmdet.engine.checks import EmbedMaskCheckHook, EmbedMaskPackagesHook
from embedmask_mmdet.engine.compiling import EmbedMaskCompileHook
from embedmask_mmdet.engine.finite import EmbedMaskFiniteLossHook
from embedmask_mmdet.engine.resume import EmbedMaskCheckpointHook

__all__ = [
    'EmbedMaskCheckHook',
    'EmbedMaskCheckpointHook',
    'EmbedMaskCompileHook',
    'EmbedMaskFiniteLossHook',
    'EmbedMaskPackagesHook',
    'load_from_local',
]
