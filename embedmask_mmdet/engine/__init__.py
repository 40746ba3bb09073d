"""MMEngine hooks for training and testing.

Importing this package turns on two things: checkpoints are loaded safely, and annotation files are checked while
MMDetection reads them.
"""

from embedmask_mmdet.engine.check_hook import EmbedMaskCheckHook
from embedmask_mmdet.engine.checkpoint import load_from_local
from embedmask_mmdet.engine.compiling import EmbedMaskCompileHook
from embedmask_mmdet.engine.data_checks import check_what_mmdet_reads
from embedmask_mmdet.engine.explain_hook import EmbedMaskExplainHook
from embedmask_mmdet.engine.finite import EmbedMaskFiniteLossHook
from embedmask_mmdet.engine.packages import EmbedMaskPackagesHook
from embedmask_mmdet.engine.resume import EmbedMaskCheckpointHook

__all__ = [
    'EmbedMaskCheckHook',
    'EmbedMaskCheckpointHook',
    'EmbedMaskCompileHook',
    'EmbedMaskExplainHook',
    'EmbedMaskFiniteLossHook',
    'EmbedMaskPackagesHook',
    'load_from_local',
]

check_what_mmdet_reads()
