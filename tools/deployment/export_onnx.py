"""Write a trained model to one ONNX file that takes an image and gives boxes, scores, labels and masks.

    python tools/deployment/export_onnx.py CONFIG CHECKPOINT --out model.onnx
    python tools/deployment/export_onnx.py CONFIG CHECKPOINT --out model.onnx --verify data/nuclei/images
    python tools/deployment/export_onnx.py CONFIG CHECKPOINT --out raw.onnx --input tensor --raw --shape 4 800 1088

Resizing, normalization, suppression and refinements are in the file, which only has standard operators. `--verify`
compares it with PyTorch; the exit code is 1 if they differ. docs/deployment.md shows how to use the file, and the
other kinds of files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config, DictAction

from embedmask_mmdet.cli.launch import fail, find_checkpoint, find_config
from embedmask_mmdet.deployment.calibration import find_images, make_inputs, read_images
from embedmask_mmdet.deployment.export import OPSET, export_onnx
from embedmask_mmdet.deployment.float16 import convert_to_float16
from embedmask_mmdet.deployment.int8 import Int8
from embedmask_mmdet.deployment.kinds import KINDS, Kind, fix_shape
from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.deployment.reducible import Reduction, keep_float32
from embedmask_mmdet.deployment.verify import Verifier
from embedmask_mmdet.errors import CheckpointError, InputError
from embedmask_mmdet.inference.inferencer import EmbedMaskInferencer
from embedmask_mmdet.media import SkippedFiles, is_video, list_files, read_image
from embedmask_mmdet.models import EmbedMask


def parse_args() -> argparse.Namespace:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', type=Path, required=True, help='ONNX file to write')
    parser.add_argument('--verify', nargs='+', default=[], metavar='IMAGES', help='files or folders to compare with')
    parser.add_argument(
        '--input',
        choices=('image', 'tensor'),
        default='image',
        help='tensor: preprocessed images, float32 (B, 3, H, W)',
    )
    parser.add_argument(
        '--masks',
        dest='output',
        choices=('image', 'grid'),
        default='image',
        help='image: bitmaps (the default). grid: values in small crops, from which bitmaps can be made',
    )
    parser.add_argument(
        '--raw', dest='output', action='store_const', const='raw', help='the outputs of the network alone'
    )
    parser.add_argument('--shape', nargs=3, type=int, metavar=('B', 'H', 'W'), help='fixed shape of --input tensor')
    parser.add_argument('--opset', type=int, default=OPSET, help=f'version of ONNX operators, default: {OPSET}')
    numbers = parser.add_mutually_exclusive_group()
    numbers.add_argument('--fp16', action='store_true', help='float16 in backbone, neck and towers')
    numbers.add_argument('--int8', metavar='FOLDER', help='int8 there; FOLDER has images to calibrate with')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, replaces a setting of the config'
    )
    args = parser.parse_args()
    args.config = find_config(args.config)
    args.checkpoint = find_checkpoint(args.checkpoint)
    if args.out.suffix != '.onnx':
        fail(f'--out must end with .onnx, got {args.out}. Other files are not written over.')
    if args.verify and (args.input != 'image' or args.output == 'raw'):
        fail('--verify compares masks in images. Leave it out with --input tensor and --raw.')
    if not args.out.parent.is_dir():
        fail(f'the folder {args.out.parent} of --out does not exist. Make it, or choose another.')
    return args


def choose_kind(args: argparse.Namespace) -> Kind:
    """Return what the file takes and gives."""
    kind = KINDS[args.input, args.output]
    return fix_shape(kind, args.shape) if args.shape else kind


def choose_reduction(args: argparse.Namespace, model: EmbedMask, pipeline: list[dict], kind: Kind) -> Reduction:
    """Return what makes numbers smaller."""
    if args.int8:
        return Int8(make_inputs(kind, model, pipeline, read_images(find_images(args.int8))))
    return convert_to_float16 if args.fp16 else keep_float32


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
        kind = choose_kind(args)
        for package in ('onnx', 'onnxruntime') if args.verify or args.int8 else ('onnx',):
            import_optional(package)
        inferencer = EmbedMaskInferencer(cfg, args.checkpoint, device='cpu')
        model = inferencer.model
        reduce = choose_reduction(args, model, get_test_pipeline_cfg(cfg), kind)
        export_onnx(cfg, model, inferencer.classes, args.out, kind=kind, opset=args.opset, reduce=reduce)
        print(f'written to {args.out}', flush=True)
        if args.verify and not verify(Verifier(args.out, inferencer), args.verify):
            sys.exit(1)
    except (CheckpointError, InputError) as error:
        fail(str(error))


if __name__ == '__main__':
    main()
