"""Find for each class the score with the highest F-measure of masks on the validation images.

    python tools/analysis_tools/score_thresholds.py configs/embedmask_r50_1x_coco.py work_dirs/run/epoch_12.pth

The thresholds are written next to the checkpoint, where demo/image_demo.py finds them. Masks are matched as in COCO's
evaluation, at one IoU. A class without a correct mask gets the median of the other classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction

from embedmask_mmdet.analysis.threshold_search import find_annotations, find_thresholds, format_thresholds
from embedmask_mmdet.analysis.thresholds import save_thresholds, thresholds_file
from embedmask_mmdet.cli.launch import fail, find_checkpoint, find_config
from embedmask_mmdet.errors import CheckpointError, InputError


def parse_args() -> argparse.Namespace:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', type=Path, help='file to write (default: CHECKPOINT with .thresholds.json)')
    parser.add_argument('--iou-thr', type=float, default=0.5, help='lowest IoU of a correct mask (default: 0.5)')
    parser.add_argument(
        '--results', type=Path, help="masks detected earlier on the same images, in COCO's format for results"
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, replaces a setting of the config'
    )
    args = parser.parse_args()
    if not 0 < args.iou_thr <= 1:
        parser.error('--iou-thr must be above 0 and at most 1')
    if '://' in args.checkpoint and not args.out:
        parser.error('--out is required if the checkpoint is a URL')
    args.config = find_config(args.config)
    args.checkpoint = find_checkpoint(args.checkpoint)
    return args


def main() -> None:
    """Find the thresholds, print and save them."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    out = args.out or thresholds_file(args.checkpoint)
    try:
        annotations = find_annotations(cfg)
        thresholds = find_thresholds(cfg, args.checkpoint, args.iou_thr, args.results)
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except OSError as error:
        fail(f'{error.filename}: {error.strerror}' if error.filename else str(error))
    print(format_thresholds(thresholds))
    about = dict(checkpoint=Path(args.checkpoint).name, annotations=annotations, iou_thr=args.iou_thr)
    try:
        save_thresholds(out, thresholds, **about)
    except OSError as error:
        fail(f'{out} cannot be written: {error.strerror}')
    print(f'written to {out}')


if __name__ == '__main__':
    main()
