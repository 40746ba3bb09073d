"""Train models for equally many iterations on equal data, and compare their AP over iterations and over time.

    python tools/analysis_tools/compare_models.py configs/comparison/{embedmask-plus,condinst}_r18-64_nuclei.py

Any MMDetection config can take part. Each keeps its model, data, augmentation and optimizer. The schedule is the same
for all: a linear warm-up over 5 % of the iterations and a cosine to zero, with tests on the way. With one seed all
models get the same batches.

Each training is a run of tools/train.py in its own process. Finished trainings are used again, so that the same command
continues an interrupted comparison, and models can be added later. Tables and a plot are written to docs/accuracy.md,
and the curves to docs/accuracy.json, so that another machine can continue. If a config changes, it is trained again. If
only the code of a model changes, remove its folder and its lines in the JSON file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from embedmask_mmdet.analysis.comparison import run_comparison
from embedmask_mmdet.analysis.comparison.configs import Options, split_limit
from embedmask_mmdet.cli.launch import fail, fail_missing, find_config
from embedmask_mmdet.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> Options:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='CONFIG',
        help='the others are compared with the first; CONFIG:N ends the schedule of a slow model after N iterations',
    )
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds, from 0 (default: %(default)s)')
    parser.add_argument(
        '--iterations', type=int, nargs='+', default=[100, 300, 600], help='test after these (default: %(default)s)'
    )
    parser.add_argument('--scale', type=float, default=1, help='enlarge the input by this factor, such as 2 or 4')
    parser.add_argument('--rounds', type=int, default=20, help='training steps that are timed (default: %(default)s)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/comparison'), help='folder of the trainings')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'accuracy.md', help='Markdown file to write')
    parser.add_argument('--title', default='Comparison', help='section to write; an older one is replaced')
    parser.add_argument('--report', action='store_true', help='train nothing, report what is already trained')
    options = Options(**vars(parser.parse_args()), root=ROOT)
    options.iterations = sorted(set(options.iterations))
    if min(options.iterations[0], options.seeds, options.rounds) < 1 or options.scale <= 0:
        fail('--iterations, --seeds and --rounds must be at least 1, and --scale above 0.')
    if options.out.suffix != '.md':
        fail(f'--out must be a Markdown file, got {options.out}. Give NAME.md; NAME.json is written next to it.')
    for i, argument in enumerate(options.configs):
        name, _ = split_limit(argument)
        options.configs[i] = argument.replace(name, find_config(name))
    return options


def main() -> None:
    """Run the comparison; errors that a user can fix end it with a message."""
    options = parse_args()
    try:
        missing = run_comparison(options)
    except InputError as error:
        fail(str(error))
    except FileNotFoundError as error:
        fail_missing(error)
    if missing and not options.report:
        fail(f'{missing} of {options.seeds * len(options.configs)} trainings failed; the lines above say why.')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
