"""Write a COCO dataset of textured shapes that hide one another, to compare models where nothing can be downloaded.

    OUT/images/{train,test}_0000.png ...
    OUT/annotations/{train,test}.json

The same arguments give the same files, with the same versions of NumPy and OpenCV.
"""

import argparse
import sys
from pathlib import Path

from embedmask_mmdet.datasets.shapes import MIN_SIZE, write_dataset


def main() -> None:
    """Write the dataset, or end with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/shapes'), help='folder to write (default: %(default)s)')
    parser.add_argument(
        '--images',
        type=int,
        nargs=2,
        default=(400, 80),
        metavar=('TRAIN', 'TEST'),
        help='number of images (default: 400 80)',
    )
    parser.add_argument('--size', type=int, default=256, help='side of the images in pixels (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='(default: %(default)s)')
    args = parser.parse_args()
    if min(args.images) < 1 or args.seed < 0:
        sys.exit('ERROR: --images must be at least 1 each and --seed at least 0')
    if args.size < 4 * MIN_SIZE:
        sys.exit(f'ERROR: --size must be at least {4 * MIN_SIZE}: the smallest shapes are {MIN_SIZE} pixels wide')
    write_dataset(args.out, *args.images, args.size, args.seed)


if __name__ == '__main__':
    main()
