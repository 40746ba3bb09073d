"""Run all checks for the datasets and metrics of a config, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope

from embedmask_mmdet.engine.data_checks.datasets import NUM_IMAGES, find_dataset_problems
from embedmask_mmdet.engine.data_checks.findings import ERROR, Finding, collect_findings, error
from embedmask_mmdet.engine.data_checks.metrics import find_metric_problems
from embedmask_mmdet.engine.data_checks.pipelines import BATCH_AUGMENTS, find_moves_without_masks
from embedmask_mmdet.errors import InputError

PARTS = ('train', 'val', 'test')


def explain_build_error(problem: Exception, config: str) -> str | None:
    """Say what a user can do about an error of MMDetection while it builds or reads a dataset.

    Args:
        problem: The error.
        config: Name of the config.

    Returns:
        A message; None if the user cannot do anything.
    """
    if isinstance(problem, InputError):
        return str(problem)
    if isinstance(problem, FileNotFoundError):
        if problem.filename is None:  # raised with a complete message
            return str(problem)
        return (
            f'{problem.filename} does not exist (working folder: {Path.cwd()}). Put or link the data there, or set '
            'data_root, ann_file and data_prefix of the dataloaders, and ann_file of the evaluators.'
        )
    # What MMEngine raises when it builds a dataset without images.
    if isinstance(problem, ValueError) and 'need at least one array to concatenate' in str(problem):
        return (
            f'a dataset of {config} has no images left. The annotation file lists none with annotations, or '
            'filter_cfg removes all: those without instances of metainfo.classes (are they the names in '
            '"categories"?), and those smaller than min_size.'
        )
    return None


def find_part_problems(cfg: Config, part: str, num_images: int | None) -> list[Finding]:
    """Check the dataset and the metrics of training, validation or testing."""
    num_classes = cfg.get('model', {}).get('bbox_head', {}).get('num_classes')
    with collect_findings() as found:
        try:
            dataset = DATASETS.build(cfg[f'{part}_dataloader'].dataset)
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
            found += find_dataset_problems(dataset, num_classes, num_images)
            if part != 'train' and cfg.get(f'{part}_evaluator'):
                evaluator = Evaluator(cfg[f'{part}_evaluator'])
                found += find_metric_problems(evaluator, dataset, f'{part}_evaluator')
        except Exception as problem:
            message = explain_build_error(problem, cfg.filename or 'the config')
            if message is None:
                raise
            # Errors in an annotation file are in the list already.
            if all(finding.severity != ERROR for finding in found):
                found.append(error(message))
    return found


def find_batch_augments(cfg: Config) -> Iterator[Finding]:
    """Check the batch augmentations of a config."""
    augments = cfg.get('model', {}).get('data_preprocessor', {}).get('batch_augments') or ()
    yield from find_moves_without_masks([augment['type'] for augment in augments], BATCH_AUGMENTS)


def find_problems(cfg: Config, num_images: int | None = NUM_IMAGES) -> list[Finding]:
    """Check the datasets and metrics of training, validation and testing.

    Args:
        cfg: A config; nothing of its model is built.
        num_images: How many image files of each dataset to look at; None for all.

    Returns:
        What is wrong, each finding once.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    found = list(find_batch_augments(cfg))
    seen: list[dict] = []
    for part in PARTS:
        loader = cfg.get(f'{part}_dataloader')
        about = loader and dict(dataset=loader.dataset, evaluator=part != 'train' and cfg.get(f'{part}_evaluator'))
        if loader and about not in seen:
            seen.append(about)
            found += find_part_problems(cfg, part, num_images)
    return list(dict.fromkeys(found))
