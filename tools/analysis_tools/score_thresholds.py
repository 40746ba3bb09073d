"""Find for each class the score at which the F-measure of its masks is highest on the validation images.

The thresholds are written beside the checkpoint, where demo/image_demo.py finds them. Masks are matched as COCO's
evaluation does, at one IoU; a class without a correct mask gets the median of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from run_installed import check_checkpoint, check_config, fail, require_mmdet  # noqa: E402

require_mmdet()

from mmdet.registry import DATASETS  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

from embedmask_mmdet.engine.thresholds import (  # noqa: E402
    ScoreThreshold,
    class_thresholds,
    save_thresholds,
    thresholds_file,
)
from embedmask_mmdet.errors import CheckpointError, InputError  # noqa: E402


def find_annotations(cfg: Config) -> str:
    """Return the annotation file that a config's validation compares masks with.

    Raises:
        InputError: The evaluator is not COCO's.
    """
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    for evaluator in evaluators:
        if evaluator.type == 'CocoMetric' and evaluator.get('ann_file'):
            return evaluator.ann_file
    raise InputError(
        f"thresholds are computed with COCO's evaluation, but val_evaluator is {evaluators[0].type}: give "
        "val_evaluator=dict(type='CocoMetric', ann_file=...) with annotations that name every instance of an image"
    )


def run_validation(cfg: Config, annotations: str, checkpoint: str, folder: str) -> Path:
    """Detect on the validation images and return the result file of the masks, which is written into a folder."""
    results = f'{folder}/results'
    cfg.update(load_from=checkpoint, work_dir=folder, test_cfg=dict(type='TestLoop'))
    cfg.test_dataloader = cfg.val_dataloader
    cfg.test_evaluator = dict(
        type='CocoMetric', ann_file=annotations, metric='segm', format_only=True, outfile_prefix=results
    )
    Runner.from_cfg(cfg).test()
    return Path(f'{results}.segm.json')


def find_thresholds(cfg: Config, annotations: str, results: Path, iou_thr: float) -> dict[str, ScoreThreshold]:
    """Compare a result file with the validation annotations.

    Args:
        cfg: The configuration, which has the names of the classes.
        annotations: The annotation file.
        results: A list of masks in COCO's format for results.
        iou_thr: From which IoU on a mask is correct.

    Returns:
        The threshold of each class.

    Raises:
        InputError: The file is no list of masks, or is of other images.
    """
    try:
        masks = json.loads(results.read_text())
        # With a box beside it, pycocotools would make a mask of the box.
        masks = [{key: mask[key] for key in ('image_id', 'category_id', 'segmentation', 'score')} for mask in masks]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{results} is no result file of masks as COCO takes them ({error!r})') from error
    if not masks:
        raise InputError('nothing at all was detected on the validation images: is the checkpoint trained?')

    init_default_scope('mmdet')
    classes = DATASETS.build({**cfg.val_dataloader.dataset, 'lazy_init': True}).metainfo['classes']
    with contextlib.redirect_stdout(None):
        truth = COCO(annotations)
        if not {mask['image_id'] for mask in masks} <= set(truth.imgs):
            raise InputError(f'{results} has other images than {annotations}: give the results on these')
        evaluation = COCOeval(truth, truth.loadRes(masks), 'segm')
        evaluation.params.iouThrs = [iou_thr]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
    # As MMDetection numbers a dataset's classes.
    cat_ids = truth.getCatIds(catNms=classes)
    return dict(zip(classes, class_thresholds(evaluation, cat_ids)))


def print_table(thresholds: dict[str, ScoreThreshold]) -> None:
    """Print a line for each class."""
    width = max(map(len, thresholds))
    print(f'{"class":{width}}  score  F-measure  precision  recall  instances')
    for name, each in thresholds.items():
        found = (each.f_measure, each.precision, each.recall)
        f_measure, precision, recall = ['-' if value is None else f'{value:.3f}' for value in found]
        print(f'{name:{width}}  {each.threshold:.3f}  {f_measure:>9}  {precision:>9}  {recall:>6}  {each.instances:>9}')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        '--out', type=Path, help="file to write (default: beside the checkpoint, with '.thresholds.json')"
    )
    parser.add_argument('--iou-thr', type=float, default=0.5, help='IoU from which a mask is correct (default: 0.5)')
    parser.add_argument(
        '--results', type=Path, help="masks found before on the same images, in COCO's format for results"
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, put into the config'
    )
    args = parser.parse_args()
    if not 0 < args.iou_thr <= 1:
        parser.error('--iou-thr must lie between 0 and 1')
    if '://' in args.checkpoint and not args.out:
        parser.error('--out is needed for a checkpoint that is no local file')
    return args


def main() -> None:
    """Find the thresholds, print and save them."""
    args = parse_args()
    check_config(args.config)
    check_checkpoint(args.checkpoint)
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    out = args.out or thresholds_file(args.checkpoint)
    try:
        annotations = find_annotations(cfg)
        with tempfile.TemporaryDirectory() as folder:
            results = args.results or run_validation(cfg, annotations, args.checkpoint, folder)
            thresholds = find_thresholds(cfg, annotations, results, args.iou_thr)
        print_table(thresholds)
        about = dict(checkpoint=Path(args.checkpoint).name, annotations=annotations, iou_thr=args.iou_thr)
        save_thresholds(out, thresholds, **about)
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except OSError as error:
        fail(f'{error.filename}: {error.strerror}' if error.filename else str(error))
    print(f'written to {out}')


if __name__ == '__main__':
    main()
