"""Draw the detections of a checkpoint on images and videos: masks, boxes, class names and scores.

Pictures have the names of their images, and their folders too if two images have the same name. Formats that cannot be
written become .png or .mp4. Videos keep their frame rate and lose their sound. Files that cannot be read are reported
and skipped; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from PIL import Image

from embedmask_mmdet.analysis.thresholds import DEFAULT_THRESHOLD, load_thresholds, thresholds_file
from embedmask_mmdet.cli.launch import fail, find_checkpoint, find_config
from embedmask_mmdet.errors import CheckpointError, InputError, name_some
from embedmask_mmdet.inference import EmbedMaskInferencer, speed_up
from embedmask_mmdet.inference.drawing import FileDrawer
from embedmask_mmdet.media import SkippedFiles, list_files, name_outputs


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('inputs', nargs='+', metavar='IMAGES_OR_FOLDER', help='images, videos, folders of them')
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), help='(default: %(default)s)')
    parser.add_argument('--device', help='(default: cuda:0 if there is one, otherwise cpu)')
    parser.add_argument('--batch-size', type=int, default=1, help='images or frames per batch (default: %(default)s)')
    scores = parser.add_mutually_exclusive_group()
    scores.add_argument('--score-thr', type=float, help='draw detections of any class with at least this score')
    scores.add_argument(
        '--thresholds',
        type=Path,
        help='file with a score for each class (default: CHECKPOINT with the suffix .thresholds.json, if it exists)',
    )
    parser.add_argument('--min-image-size', type=int, help="short side to resize to (default: the config's)")
    parser.add_argument('--palette', default='none', choices=['none', 'coco', 'voc', 'citys', 'random'])
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value pairs that change the config'
    )
    args = parser.parse_intermixed_args()
    for name in ('batch_size', 'min_image_size'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be 1 or more')
    return args


def load_inferencer(args: argparse.Namespace) -> EmbedMaskInferencer:
    """Load the model and its score thresholds.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        InputError: Config, checkpoint and thresholds do not match, or the device cannot be used.
    """
    if args.device:
        try:
            torch.zeros(1, device=args.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f'--device {args.device} cannot be used: {str(error).splitlines()[0]}') from error
    cfg = Config.fromfile(args.config)
    # As bitmaps, the masks of many detections in a large image would not fit into memory.
    cfg.merge_from_dict({'model.test_cfg.mask_format': 'rle', **args.cfg_options})
    inferencer = EmbedMaskInferencer(cfg, args.checkpoint, args.device, args.palette, args.min_image_size)
    inferencer.thresholds = choose_thresholds(args, inferencer.classes)
    speed_up(inferencer.model)
    return inferencer


def choose_thresholds(args: argparse.Namespace, classes: Sequence[str]) -> list[float]:
    """Return a score threshold for each class, and print where they come from.

    Raises:
        InputError: The file of thresholds cannot be read or is for other classes.
    """
    if args.score_thr is not None:
        return [args.score_thr] * len(classes)
    path = args.thresholds or thresholds_file(args.checkpoint)
    if not args.thresholds and not path.is_file():
        print(
            f'Drawing detections with a score of {DEFAULT_THRESHOLD} or more. '
            'tools/analysis_tools/score_thresholds.py finds the best score for each class.'
        )
        return [DEFAULT_THRESHOLD] * len(classes)
    thresholds = load_thresholds(path, classes)
    older = path.stat().st_mtime < Path(args.checkpoint).expanduser().stat().st_mtime
    print(f'Score thresholds for each class: {path}{" (older than the checkpoint)" if older else ""}')
    return thresholds


def main() -> None:
    """Draw on all inputs."""
    args = parse_args()
    args.config = find_config(args.config)
    args.checkpoint = find_checkpoint(args.checkpoint)
    skipped = SkippedFiles()
    files = list_files(args.inputs, skipped)
    if not files:
        fail('there is nothing to draw')
    try:
        outputs = name_outputs(files, args.out_dir)
        args.out_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(args.out_dir, os.W_OK):
            fail(f'the folder {args.out_dir} is not writable: choose another --out-dir')
        drawer = FileDrawer(load_inferencer(args), args.batch_size, skipped)
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except OSError as error:
        fail(f'{error.filename}: {error.strerror}')
    drawer.draw(files, outputs)
    num_drawn = len(set(files) - set(skipped))
    print(f'{num_drawn} of {len(files)} drawn into {args.out_dir}, with {drawer.num_instances} instances')
    if skipped:
        sys.exit(f'{len(skipped)} skipped: {name_some(skipped)}')


if __name__ == '__main__':
    warnings.filterwarnings('ignore', 'Warning: The .* is out of bounds')  # for boxes that end at the image border
    warnings.filterwarnings('ignore', '.*meshgrid')
    Image.MAX_IMAGE_PIXELS = None  # the images are the user's own: a large one is not an attack
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
