"""Time the training pipelines for a crowded image: 300 instances of 60x60 pixels in 1,000x1,000 pixels.

    python tools/analysis_tools/benchmark_loading.py

Our masks and MMDetection's take turns on one core. The table is written to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from embedmask_mmdet.analysis.loading import format_table, write_crowd
from embedmask_mmdet.analysis.machine import describe_load, describe_machine
from embedmask_mmdet.analysis.markdown import write_section

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    ROOT / 'configs' / f'{name}.py' for name in ('embedmask_r50_1x_coco', 'embedmask_own-data', 'embedmask_r18_nuclei')
]
DESCRIPTION = (
    '`python tools/analysis_tools/benchmark_loading.py`: CPU time of a training pipeline, from the files to what a '
    'worker sends to the model, for 300 instances of about 60x60 pixels in an image of 1,000x1,000. Medians of '
    '{rounds} turns, each with the same random augmentation for both. The sizes are those of the masks as a worker '
    'sends them. "MMDetection" is the same pipeline with `LoadAnnotations`, "ours" with `EmbedMaskLoadAnnotations`. '
    'Both give equal masks.\n\n'
)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', type=Path, nargs='*', default=CONFIGS, help='configs with a train_pipeline')
    parser.add_argument('--rounds', type=int, default=10, help='turns of each pipeline')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'benchmarks.md')
    return parser.parse_args()


def main() -> None:
    """Measure, print the table and write it."""
    args = parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    init_default_scope('mmdet')
    text = DESCRIPTION.format(rounds=args.rounds) + describe_machine('cpu') + describe_load() + '\n'
    pipelines = {path.stem: Config.fromfile(path).train_pipeline for path in args.configs}
    with tempfile.TemporaryDirectory() as folder:
        write_crowd(Path(folder))
        for line in format_table(Path(folder), pipelines, args.rounds):
            print(line, flush=True)
            text += f'\n{line}'
    write_section(args.out, 'Loading a crowded image', text)


if __name__ == '__main__':
    main()
