"""Find score thresholds of a checkpoint by comparing its masks with the validation annotations."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.cocoeval import COCOeval

from embedmask_mmdet.analysis.thresholds import ScoreThreshold, class_thresholds
from embedmask_mmdet.engine.data_checks import CheckedCOCO
from embedmask_mmdet.errors import InputError

RESULT_KEYS = ('image_id', 'category_id', 'segmentation', 'score')


def find_annotations(cfg: Config) -> str:
    """Return the annotation file that a config's validation compares masks with.

    Raises:
        InputError: If no evaluator is COCO's.
    """
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    for evaluator in evaluators:
        if evaluator.type == 'CocoMetric' and evaluator.get('ann_file'):
            return evaluator.ann_file
    raise InputError(
        f"thresholds need COCO's evaluation, but val_evaluator is {evaluators[0].type}. Set "
        "val_evaluator=dict(type='CocoMetric', ann_file=...) with annotations of all instances of each image."
    )


def run_validation(cfg: Config, annotations: str, checkpoint: str, folder: str) -> Path:
    """Detect on the validation images.

    Args:
        cfg: Config of the model and its validation; it is changed.
        annotations: Annotation file of the validation images.
        checkpoint: Weights of the model.
        folder: Folder for logs and results.

    Returns:
        The file of the masks, in COCO's format for results.
    """
    results = f'{folder}/results'
    cfg.update(load_from=checkpoint, work_dir=folder, test_cfg=dict(type='TestLoop'))
    cfg.test_dataloader = cfg.val_dataloader
    cfg.test_evaluator = dict(
        type='CocoMetric', ann_file=annotations, metric='segm', format_only=True, outfile_prefix=results
    )
    Runner.from_cfg(cfg).test()
    return Path(f'{results}.segm.json')


def read_results(path: Path) -> list[dict]:
    """Read masks in COCO's format for results.

    Raises:
        InputError: If the file has another format or contains no masks.
    """
    try:
        # Boxes are dropped, as pycocotools would compute masks from them.
        masks = [{key: mask[key] for key in RESULT_KEYS} for mask in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a list of masks in COCO's format for results ({error!r})") from error
    if not masks:
        raise InputError('nothing was detected on the validation images. Is the checkpoint trained?')
    return masks


def compare_with_annotations(cfg: Config, annotations: str, results: Path, iou_thr: float) -> dict[str, ScoreThreshold]:
    """Find the best threshold of each class.

    Args:
        cfg: Config with the names of the classes.
        annotations: Annotation file.
        results: Masks in COCO's format for results.
        iou_thr: Lowest IoU of a correct mask.

    Returns:
        The thresholds by names of classes.

    Raises:
        InputError: If the results are not a list of masks, or belong to other images.
    """
    masks = read_results(results)
    init_default_scope('mmdet')
    classes = DATASETS.build({**cfg.val_dataloader.dataset, 'lazy_init': True}).metainfo['classes']
    with contextlib.redirect_stdout(None):
        truth = CheckedCOCO(annotations)
        if not {mask['image_id'] for mask in masks} <= set(truth.imgs):
            raise InputError(f'{results} has other images than {annotations}. Give results on the same images.')
        evaluation = COCOeval(truth, truth.loadRes(masks), 'segm')
        evaluation.params.iouThrs = [iou_thr]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
    cat_ids = truth.get_cat_ids(cat_names=classes)
    return dict(zip(classes, class_thresholds(evaluation, cat_ids)))


def find_thresholds(
    cfg: Config, checkpoint: str, iou_thr: float, results: Path | None = None
) -> dict[str, ScoreThreshold]:
    """Find the best threshold of each class on the validation images.

    Args:
        cfg: Config of the model and its validation; it is changed.
        checkpoint: Weights of the model.
        iou_thr: Lowest IoU of a correct mask.
        results: Masks in COCO's format for results; None to detect them now.

    Returns:
        The thresholds by names of classes.

    Raises:
        InputError: If config and results do not fit COCO's evaluation.
    """
    annotations = find_annotations(cfg)
    with tempfile.TemporaryDirectory() as folder:
        results = results or run_validation(cfg, annotations, checkpoint, folder)
        return compare_with_annotations(cfg, annotations, results, iou_thr)


def format_thresholds(thresholds: Mapping[str, ScoreThreshold]) -> str:
    """Format thresholds as a table with a line for each class."""
    width = max(map(len, thresholds))
    lines = [f'{"class":{width}}  score  F-measure  precision  recall  instances']
    for name, row in thresholds.items():
        values = (row.f_measure, row.precision, row.recall)
        f_measure, precision, recall = ['-' if value is None else f'{value:.3f}' for value in values]
        lines.append(
            f'{name:{width}}  {row.threshold:.3f}  {f_measure:>9}  {precision:>9}  {recall:>6}  {row.instances:>9}'
        )
    return '\n'.join(lines)
