"""Time the mask stage of inference, from the outputs of the network to COCO run lengths and to bitmaps.

    OMP_WAIT_POLICY=passive python tools/analysis_tools/benchmark_masks.py

Our kernels, our plain PyTorch code, and the mask stages of MMDetection's Mask R-CNN, CondInst and SOLOv2 take turns in
one process, on random weights and features. The tables are written to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mmengine.registry import init_default_scope

from embedmask_mmdet.analysis.markdown import write_section
from embedmask_mmdet.analysis.mask_stage.cases import CASES
from embedmask_mmdet.analysis.mask_stage.report import describe_tables, format_tables
from embedmask_mmdet.analysis.operators import check_kernels
from embedmask_mmdet.errors import InputError, fail

ROOT = Path(__file__).resolve().parents[2]
SECTION = 'The mask stage of inference'


def parse_args() -> argparse.Namespace:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument(
        '--rounds', type=int, default=5, help='turns of each method in case 0; other cases have a third of them'
    )
    parser.add_argument('--cases', type=int, nargs='*', help='numbers of the cases, from 0 (default: all)')
    parser.add_argument('--memory', type=float, default=4, help='GB above which a method is left out of a case')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'benchmarks.md')
    args = parser.parse_args()
    try:
        check_kernels(args.device)
    except InputError as error:
        fail(str(error))
    return args


@torch.no_grad()
def main() -> None:
    """Measure, print the tables and write them."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    description = describe_tables(args.device, args.memory)
    tables = []
    for table in format_tables(args.cases or range(len(CASES)), args.device, args.rounds, args.memory * 1e9):
        print(table, flush=True)
        tables.append(table)
    title = SECTION if args.device == 'cpu' else f'{SECTION}, on a GPU'
    write_section(args.out, title, '\n'.join([description, *tables]))


if __name__ == '__main__':
    main()
