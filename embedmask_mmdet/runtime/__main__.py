"""Detect in images and videos with an ONNX file: write pictures and COCO results, without PyTorch.

    python -m embedmask_mmdet.runtime model.onnx images/ video.mp4 --out results/

Pictures have the names of their images, and their folders too if two images have the same name. results.json has the
detections with COCO's run lengths; images.json has the images and categories that its ids belong to. Files that cannot
be read are reported and skipped; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from embedmask_mmdet.errors import InputError, name_some
from embedmask_mmdet.media import SkippedFiles, list_files, name_outputs
from embedmask_mmdet.runtime.files import FileSegmenter, make_folder
from embedmask_mmdet.runtime.segmenter import Segmenter


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m embedmask_mmdet.runtime',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model', type=Path, help='file that tools/deployment/export_onnx.py wrote')
    parser.add_argument('inputs', nargs='+', metavar='IMAGES_OR_FOLDER', help='images, videos, folders of them')
    parser.add_argument('--out', type=Path, required=True, help='folder for pictures, results.json and images.json')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='keep detections with at least this score (default: %(default)s)'
    )
    parser.add_argument('--threads', type=int, help="(default: onnxruntime's choice)")
    return parser.parse_args()


def segment(args: argparse.Namespace, skipped: SkippedFiles) -> str:
    """Segment all inputs.

    Returns:
        What was done, in one line.

    Raises:
        InputError: If the model cannot be used, there is nothing to do, or results would be written over.
    """
    files = list_files(args.inputs, skipped)
    if not files:
        raise InputError('there are no images and no videos. Name files, or folders that have some.')
    outputs = name_outputs(files, args.out)
    segmenter = Segmenter(args.model, args.threads)
    make_folder(args.out)
    work = FileSegmenter(segmenter, args.score_thr, skipped)
    work.segment(files, outputs)
    work.coco.write(args.out)
    num_done = len(set(files) - set(skipped))
    return f'{num_done} of {len(files)} written to {args.out}, with {len(work.coco.results)} instances'


def main() -> None:
    """Segment, and exit with 1 if a file was skipped."""
    args = parse_args()
    skipped = SkippedFiles()
    try:
        print(segment(args, skipped))
    except InputError as error:
        sys.exit(f'embedmask_mmdet.runtime: error: {error}')
    except OSError as error:
        sys.exit(f'embedmask_mmdet.runtime: error: {error.filename}: {error.strerror}')
    if skipped:
        sys.exit(f'{len(skipped)} skipped: {name_some(skipped)}')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
