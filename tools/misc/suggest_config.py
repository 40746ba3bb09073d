"""Write a config that fits an annotation file in COCO's format, and say why each setting has its value.

    python tools/misc/suggest_config.py train.json val.json --images DIR --out configs/my_data.py

Object sizes, instances per image, image sizes and classes decide. The file is a copy of configs/embedmask_own-data.py
and is yours to change; a file that exists is never written over.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from embedmask_mmdet.analysis.suggestions import (
    check_images,
    suggest,
    suggest_files,
    summarize,
    write_config,
)
from embedmask_mmdet.cli.launch import fail
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.locations import CONFIGS


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('train', type=Path, help='annotation file of the training images')
    parser.add_argument('val', type=Path, nargs='?', help='annotation file of the validation images')
    parser.add_argument('--images', type=Path, required=True, help='folder of the images')
    parser.add_argument('--val-images', type=Path, help='folder of the validation images (default: the same)')
    parser.add_argument('--out', type=Path, required=True, help='config to write')
    parser.add_argument(
        '--size', choices=('small', 'r50'), default='small', help='of the model: ResNet-18 or 50 (default: small)'
    )
    return parser.parse_args()


def main() -> None:
    """Write the config and print the reasons, or end with a message."""
    args = parse_args()
    try:
        summary = summarize(args.train)
        check_images(summary, args.images, args.train)
        if args.val:
            check_images(summarize(args.val), args.val_images or args.images, args.val)
        files = suggest_files(args.train, args.images, args.val, args.val_images)
        suggestions = [*files, *suggest(summary, args.size)]
        write_config(CONFIGS / 'embedmask_own-data.py', args.out, suggestions)
    except (InputError, OSError) as error:
        fail(str(error))
    for suggestion in suggestions:
        print(': '.join(filter(None, (str(suggestion), suggestion.reason))))
    print(f'written to {args.out}; next: python tools/train.py {args.out}')


if __name__ == '__main__':
    main()
