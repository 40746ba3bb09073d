"""MMEngine hooks for training and testing.

Importing this package turns on three things: checkpoints are loaded safely, annotation files are checked while
MMDetection reads them, and MMEngine finds the configs of this package by name.
"""

from embedmask_mmdet.engine.check_hook import EmbedMaskCheckHook
from embedmask_mmdet.engine.checkpoint import load_from_local
from embedmask_mmdet.engine.compiling import EmbedMaskCompileHook
from embedmask_mmdet.engine.data_checks import check_what_mmdet_reads
from embedmask_mmdet.engine.drawing_hook import EmbedMaskVisualizationHook
from embedmask_mmdet.engine.explain_hook import EmbedMaskExplainHook
from embedmask_mmdet.engine.finite import EmbedMaskFiniteLossHook
from embedmask_mmdet.engine.model_zoo import register_configs
from embedmask_mmdet.engine.packages import EmbedMaskPackagesHook
from embedmask_mmdet.engine.resume import EmbedMaskCheckpointHook
from embedmask_mmdet.engine.speed_hook import EmbedMaskSpeedHook

__all__ = [
    'EmbedMaskCheckHook',
    'EmbedMaskCheckpointHook',
    'EmbedMaskCompileHook',
    'EmbedMaskExplainHook',
    'EmbedMaskFiniteLossHook',
    'EmbedMaskPackagesHook',
    'EmbedMaskSpeedHook',
    'EmbedMaskVisualizationHook',
    'load_from_local',
]

check_what_mmdet_reads()
register_configs()
