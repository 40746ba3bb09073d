"""Measure the mask loss against the same loss in plain PyTorch, and print a Markdown table.

    OMP_WAIT_POLICY=passive python tools/analysis_tools/benchmark_loss.py

Forward and backward from pixel embeddings and proposals to their gradients. On the CPU each measurement runs in its own
process, and memory is the highest amount that the process takes beyond its inputs; on a GPU, that of PyTorch's
allocator.
"""

from __future__ import annotations

import argparse
import sys
import warnings

from embedmask_mmdet.analysis.mask_loss import DRAW_EMBEDDINGS, Case, format_table

warnings.filterwarnings('ignore', '.*meshgrid')


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--img-shape', type=int, nargs=2, default=(800, 1088), metavar=('H', 'W'))
    parser.add_argument('--batch-size', type=int, default=2, help='images')
    parser.add_argument('--instances', type=int, default=20, help='instances in each image')
    parser.add_argument('--crowd', type=int, default=300, help='instances of the crowded image; 0 to leave it out')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    args = parse_args()
    shape = tuple(args.img_shape)
    cases = [Case(weights, args.batch_size, args.instances, shape, args.device) for weights in DRAW_EMBEDDINGS]
    crowded_cases = [Case(weights, 1, args.crowd, shape, args.device) for weights in DRAW_EMBEDDINGS if args.crowd]
    try:
        for line in format_table(cases, crowded_cases, args.threads, args.repeats):
            print(line, flush=True)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
