"""Count the weights and multiply-adds of models and print them as a table.

    python tools/analysis_tools/get_flops.py configs/*.py mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py

MMDetection's tool of the same name needs the dataset, averages over the sizes of its images, and does not count
deformable convolutions. This one needs only an input size, and names what it does not count.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from embedmask_mmdet.analysis.configs import INSTALLED_PREFIX, load_config
from embedmask_mmdet.analysis.flops import format_flops
from embedmask_mmdet.cli.launch import fail, find_config
from embedmask_mmdet.errors import InputError


def parse_args() -> argparse.Namespace:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='a file, or mmdet::folder/name.py')
    parser.add_argument('--shape', nargs=2, type=int, default=[800, 1280], metavar=('HEIGHT', 'WIDTH'))
    args = parser.parse_args()
    if min(args.shape) < 1:
        fail(f'--shape takes a height and a width in pixels, got {args.shape}')
    args.configs = [name if name.startswith(INSTALLED_PREFIX) else find_config(name) for name in args.configs]
    return args


def main() -> None:
    """Print a row for each config."""
    args = parse_args()
    try:
        configs = {Path(config).name: load_config(config) for config in args.configs}
    except InputError as error:
        fail(str(error))
    for line in format_flops(configs, tuple(args.shape)):
        print(line, flush=True)


if __name__ == '__main__':
    main()
