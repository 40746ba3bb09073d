"""Explain detections: draw what the model computes for an image, from embeddings to masks.

    python tools/misc/explain.py CONFIG CHECKPOINT image.jpg --out-dir explained
    python tools/misc/explain.py CONFIG CHECKPOINT images/ --format html

Each image gets one picture or one HTML page. docs/how-it-works.md shows how to read it. Files that cannot be read are
reported and skipped; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction

from embedmask_mmdet.cli.launch import fail, find_checkpoint, find_config
from embedmask_mmdet.errors import CheckpointError, InputError, name_some
from embedmask_mmdet.explain import explain_image
from embedmask_mmdet.explain.explanation import MIN_SCORE, NUM_DETECTIONS, SUFFIXES
from embedmask_mmdet.inference import EmbedMaskInferencer
from embedmask_mmdet.media import SkippedFiles, is_video, list_files, name_outputs
from embedmask_mmdet.models import EmbedMask


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('images', nargs='+', help='images, folders of them')
    parser.add_argument('--out-dir', type=Path, default=Path('explained'), help='(default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=MIN_SCORE, help='lowest score (default: %(default)s)')
    parser.add_argument(
        '--detections', type=int, default=NUM_DETECTIONS, help='number of detections of an image (default: %(default)s)'
    )
    formats = [suffix.removeprefix('.') for suffix in SUFFIXES]
    parser.add_argument('--format', choices=formats, default=formats[0], help='of the files (default: %(default)s)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, replaces a setting of the config'
    )
    return parser


def name_explanations(images: Sequence[Path], out_dir: Path, suffix: str) -> list[Path]:
    """Choose a different file for each image: with another suffix or, if names differ only there, with one more.

    Raises:
        InputError: If a file would overwrite an image.
    """
    outputs = name_outputs(images, out_dir)
    short = [path.with_suffix(suffix) for path in outputs]
    return short if len(set(short)) == len(short) else [path.with_name(path.name + suffix) for path in outputs]


def explain_files(
    model: EmbedMask, args: argparse.Namespace, images: Sequence[Path], outputs: Sequence[Path], skipped: SkippedFiles
) -> None:
    """Write the explanation of each image, and print what was written."""
    for source, target in zip(images, outputs):
        with skipped.skip_on_error(source):
            options = dict(score_thr=args.score_thr, max_detections=args.detections)
            explanation = explain_image(model, source, **options)
            target.parent.mkdir(parents=True, exist_ok=True)
            explanation.save(target, title=f'What EmbedMask computes for {source.name}')
            print(f'written to {target}: {len(explanation.detections)} of {explanation.num_detections} detections')


def main(argv: Sequence[str] | None = None) -> None:
    """Explain images.

    Args:
        argv: Arguments; None for those of the command line.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.detections < 0:
        parser.error('--detections must not be negative')
    args.config = find_config(args.config)
    args.checkpoint = find_checkpoint(args.checkpoint)
    skipped = SkippedFiles()
    images = [file for file in list_files(args.images, skipped) if not is_video(file)]
    if not images:
        fail('there are no images to explain')
    try:
        outputs = name_explanations(images, args.out_dir, f'.{args.format}')
        args.out_dir.mkdir(parents=True, exist_ok=True)
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict({'model.test_cfg.mask_format': 'rle', **args.cfg_options})
        model = EmbedMaskInferencer(cfg, args.checkpoint).model
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except OSError as error:
        fail(f'{error.filename}: {error.strerror}')
    explain_files(model, args, images, outputs, skipped)
    if skipped:
        sys.exit(f'{len(skipped)} skipped: {name_some(skipped)}')
