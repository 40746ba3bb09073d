"""Find what is wrong with data before time is lost on it.

Where each check runs, so that every way to train is covered:

- :class:`CheckedCOCO` checks and cleans each annotation file while MMDetection reads it (``structure``, ``boxes``,
  ``masks``), in any tool that imports this package. The file is parsed once.
- ``EmbedMaskCheckHook`` checks the datasets and metrics that MMDetection built (``datasets``, ``images``,
  ``pipelines``, ``metrics``), before the first iteration.
- :func:`find_problems` runs all of them for a config without a model, for ``tools/misc/check_data.py``.
"""

from embedmask_mmdet.engine.data_checks.checked_coco import CheckedCOCO, check_what_mmdet_reads
from embedmask_mmdet.engine.data_checks.config import explain_build_error, find_problems
from embedmask_mmdet.engine.data_checks.datasets import check_dataset, find_dataset_problems
from embedmask_mmdet.engine.data_checks.findings import Finding, report
from embedmask_mmdet.engine.data_checks.images import explain_broken_image
from embedmask_mmdet.engine.data_checks.metrics import check_metrics, find_metric_problems
from embedmask_mmdet.engine.data_checks.pipelines import find_batch_augment_problems

__all__ = [
    'CheckedCOCO',
    'Finding',
    'check_dataset',
    'check_metrics',
    'check_what_mmdet_reads',
    'explain_broken_image',
    'explain_build_error',
    'find_batch_augment_problems',
    'find_dataset_problems',
    'find_metric_problems',
    'find_problems',
    'report',
]
