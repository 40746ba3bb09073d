"""Write a trained model to one ONNX file that takes an image and gives boxes, scores, labels and masks.

    python tools/deployment/export_onnx.py CONFIG CHECKPOINT --out model.onnx
    python tools/deployment/export_onnx.py CONFIG CHECKPOINT --out model.onnx --verify data/nuclei/images

Resizing, normalization, suppression and refinements are in the file, which only has standard operators. `--verify`
compares it with PyTorch; the exit code is 1 if they differ. docs/deployment.md shows how to use the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config, DictAction

from embedmask_mmdet.cli.launch import check_checkpoint, check_config, fail
from embedmask_mmdet.deployment.export import export_onnx
from embedmask_mmdet.deployment.outputs import MASK_OUTPUTS
from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.deployment.verify import Verifier
from embedmask_mmdet.errors import CheckpointError, InputError
from embedmask_mmdet.inference.files import SkippedFiles, is_video, list_files, read_image
from embedmask_mmdet.inference.inferencer import EmbedMaskInferencer


def parse_args() -> argparse.Namespace:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', type=Path, required=True, help='ONNX file to write')
    parser.add_argument(
        '--masks',
        choices=list(MASK_OUTPUTS),
        default='image',
        help='image: bitmaps (the default). grid: values in small crops, from which bitmaps can be made',
    )
    parser.add_argument('--verify', nargs='+', default=[], metavar='IMAGES', help='files or folders to compare with')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, replaces a setting of the config'
    )
    args = parser.parse_args()
    check_config(args.config)
    check_checkpoint(args.checkpoint)
    if args.out.suffix != '.onnx':
        fail(f'--out must end with .onnx, got {args.out}. Other files are not written over.')
    if not args.out.parent.is_dir():
        fail(f'the folder {args.out.parent} of --out does not exist. Make it, or choose another.')
    return args


def verify(verifier: Verifier, images: list[str]) -> bool:
    """Print how far the file is from PyTorch in each image.

    Returns:
        Whether all images could be compared and all deviations are small.
    """
    skipped = SkippedFiles()
    all_small = True
    for file in list_files(images, skipped):
        if is_video(file):
            continue
        with skipped.skip_on_error(file):
            deviation = verifier(read_image(file))
            print(f'{file}: {deviation}', flush=True)
            all_small = all_small and deviation.is_small
    return all_small and not skipped


def main() -> None:
    """Export, and verify if there are images; exit with 1 if the file differs from PyTorch."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    try:
        for package in ('onnx', 'onnxruntime') if args.verify else ('onnx',):
            import_optional(package)
        inferencer = EmbedMaskInferencer(cfg, args.checkpoint, device='cpu')
        export_onnx(cfg, inferencer.model, inferencer.classes, args.out, args.masks)
        print(f'written to {args.out}', flush=True)
        if args.verify and not verify(Verifier(args.out, inferencer), args.verify):
            sys.exit(1)
    except (CheckpointError, InputError) as error:
        fail(str(error))


if __name__ == '__main__':
    main()
