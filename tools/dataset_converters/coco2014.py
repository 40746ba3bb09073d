"""Write the annotation files of COCO 2014's minival and valminusminival, which can no longer be downloaded.

Both have the images and annotations of instances_val2014.json; minival has the images that are also in val2017:

    OUT/instances_minival2014.json            5000 images
    OUT/instances_valminusminival2014.json   35504 images
"""

import argparse
from pathlib import Path

from embedmask_mmdet.cli.launch import fail
from embedmask_mmdet.datasets.coco2014 import VAL2014, VAL2017, write_lists
from embedmask_mmdet.errors import InputError


def main() -> None:
    """Write both files, or end with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'annotations',
        type=Path,
        nargs='?',
        default=Path('data/coco/annotations'),
        help=f'folder with {VAL2014} and {VAL2017} (default: %(default)s)',
    )
    parser.add_argument('--out', type=Path, help='folder to write to (default: the same)')
    args = parser.parse_args()
    try:
        write_lists(args.annotations, args.out or args.annotations)
    except (InputError, OSError) as error:
        fail(str(error))


if __name__ == '__main__':
    main()
