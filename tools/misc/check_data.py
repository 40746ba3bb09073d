"""Check the data of a config: annotation files, images, classes, metrics and augmentations.

    python tools/misc/check_data.py configs/embedmask_own-data.py
    python tools/misc/check_data.py configs/embedmask_own-data.py --out data.html

All findings are printed. The exit code is 1 if there are errors, with which training would fail or learn nothing right.
`--out` also writes a page that shows the findings, counts and sizes, and pictures of suspicious annotations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config, DictAction

from embedmask_mmdet.analysis.report.data_page import write_data_page
from embedmask_mmdet.analysis.report.html import check_out
from embedmask_mmdet.cli.launch import fail, find_config
from embedmask_mmdet.engine.data_checks import Finding, find_problems
from embedmask_mmdet.engine.data_checks.datasets import NUM_IMAGES
from embedmask_mmdet.errors import InputError


def parse_args() -> argparse.Namespace:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument(
        '--all-images',
        dest='num_images',
        action='store_const',
        const=None,
        default=NUM_IMAGES,
        help=f'look at the header of every image file (default: {NUM_IMAGES} of each dataset)',
    )
    parser.add_argument('--out', type=Path, help='HTML page to write; it needs nothing else')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, replaces a setting of the config'
    )
    args = parser.parse_args()
    args.config = find_config(args.config)
    return args


def print_findings(findings: list[Finding]) -> int:
    """Print errors, then warnings, then how many there are.

    Returns:
        The number of errors.
    """
    for finding in sorted(findings, key=lambda finding: finding.severity):
        print(f'{finding.severity}: {finding.message}')
    num_errors = sum(finding.severity == 'error' for finding in findings)
    num_warnings = len(findings) - num_errors
    print(f'{num_errors} error{"s" * (num_errors != 1)}, {num_warnings} warning{"s" * (num_warnings != 1)}')
    return num_errors


def main() -> None:
    """Check the data, print the findings, and exit with 1 if there are errors."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    try:
        if args.out:
            check_out(args.out)
        findings = find_problems(cfg, args.num_images)
        num_errors = print_findings(findings)
        if args.out:
            write_data_page(cfg, args.out, findings)
            print(f'written to {args.out}')
    except InputError as error:
        fail(str(error))
    sys.exit(1 if num_errors else 0)


if __name__ == '__main__':
    main()
