"""Convert a checkpoint of EmbedMask's authors to one that this project's configs load, or back with --reverse.

ResNet-50 and ResNet-101 are recognized by their weights. Optimizer and scheduler are not converted. Nothing but tensors
and plain containers is read from the file, so that it cannot run code.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from embedmask_mmdet.cli.launch import fail, find_checkpoint, find_config
from embedmask_mmdet.converters.authors import convert
from embedmask_mmdet.errors import CheckpointError, InputError


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'src', metavar='SRC', help="checkpoint of the authors (.pth); with --reverse, one of this project's"
    )
    parser.add_argument('dst', metavar='DST', help='checkpoint to write; an existing file is replaced')
    parser.add_argument('--reverse', action='store_true', help="convert from our names to the authors'")
    parser.add_argument('--config', help='config that the weights belong to (default: for the 80 classes of COCO)')
    return parser.parse_args()


def main() -> None:
    """Convert a file, or end with a message."""
    args = parse_args()
    args.src = find_checkpoint(args.src)
    src, dst = Path(args.src).expanduser(), Path(args.dst).expanduser()
    if dst.is_dir():
        fail(f'DST {dst} is a folder: name the file, such as {dst / src.name}')
    if dst.exists() and dst.samefile(src):
        fail(f'SRC and DST are the same file, {src}: choose another DST')
    if args.config:
        args.config = find_config(args.config)
    try:
        config = convert(src, dst, args.config and Path(args.config).expanduser(), args.reverse)
    except (CheckpointError, InputError) as error:
        fail(str(error))
    print(f'wrote {dst}, {"with the names of the authors, from a checkpoint of" if args.reverse else "for"} {config}')


if __name__ == '__main__':
    main()
