"""Time models on complete images, from the file to the metrics, stage by stage.

    python tools/analysis_tools/benchmark.py configs/embedmask_r50_1x_coco.py --speed-only --against all

Other models take turns with the first one. Without --speed-only, the models are also evaluated on all images of the
test dataset, as by tools/test.py.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from mmengine.config import DictAction

from embedmask_mmdet.analysis.end_to_end import run_benchmark
from embedmask_mmdet.analysis.end_to_end.options import PRECISIONS, RIVALS, Options, parse_rivals
from embedmask_mmdet.analysis.markdown import write_section
from embedmask_mmdet.cli.launch import fail, fail_missing, find_checkpoint, find_config
from embedmask_mmdet.errors import CheckpointError, InputError

SECTION = 'End to end'


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint', nargs='?', help='weights of the model (default: random weights)')
    parser.add_argument('--speed-only', action='store_true', help='do not evaluate')
    parser.add_argument(
        '--against',
        nargs='+',
        default=[],
        metavar='MODEL[=CHECKPOINT]',
        help=f'models that take turns with the first one: {", ".join(RIVALS)}, all, or configs',
    )
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        default='float32',
        help='other than float32: autocast to this precision (default: %(default)s)',
    )
    parser.add_argument('--threads', type=int, default=2, help='CPU threads')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--images', type=int, help='with --speed-only (default: 20); otherwise all are taken')
    parser.add_argument('--warmup', type=int, default=2, metavar='TURNS', help='turns that do not count')
    parser.add_argument(
        '--detections',
        type=int,
        nargs='+',
        metavar='N',
        help='give each image this number of detections with all models, one table for each number; 0 for what the '
        'weights detect (default: 100 if a model has no checkpoint, otherwise 0)',
    )
    parser.add_argument('--out', type=Path, help=f'Markdown file for the tables, in its section "{SECTION}"')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, replaces a setting of the config'
    )
    return parser.parse_args()


def make_options(args: argparse.Namespace) -> Options:
    """Check the files of the command line, and turn it into options."""
    args.config = find_config(args.config)
    args.checkpoint = args.checkpoint and find_checkpoint(args.checkpoint)
    fields = {name: value for name, value in vars(args).items() if name not in ('against', 'out')}
    options = Options(rivals=parse_rivals(args.against), **fields)
    for _, checkpoint in options.models:
        if checkpoint:
            find_checkpoint(checkpoint)
    return options


def main() -> None:
    """Measure, print the tables and write them."""
    args = parse_args()
    command = shlex.join(['python', 'tools/analysis_tools/benchmark.py', *sys.argv[1:]])
    try:
        text = run_benchmark(make_options(args), command)
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except FileNotFoundError as error:
        fail_missing(error)
    print(text)
    if args.out:
        write_section(args.out, SECTION, text)


if __name__ == '__main__':
    main()
