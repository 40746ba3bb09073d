"""Run what needs a GPU: tests, the mask stage, the mask loss, complete inference and training steps.

    python tools/misc/gpu_check.py --parts tests masks loss inference training

Each part writes its section of docs/benchmarks-gpu.md. If one fails, the others are still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from embedmask_mmdet.analysis.gpu_check import PARTS, check_gpu
from embedmask_mmdet.errors import InputError, fail

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run the parts; errors end the program with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='(default: all)')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'benchmarks-gpu.md', help='Markdown file')
    args = parser.parse_args()
    try:
        check_gpu(args.parts, args.out)
    except InputError as error:
        fail(str(error))


if __name__ == '__main__':
    main()
