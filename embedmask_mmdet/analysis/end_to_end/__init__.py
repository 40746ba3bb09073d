"""Time models on complete images, from the file to the metrics, stage by stage."""

from __future__ import annotations

import contextlib
import sys

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from embedmask_mmdet.analysis.end_to_end.contestants import build_contestants, warm_up
from embedmask_mmdet.analysis.end_to_end.options import Options
from embedmask_mmdet.analysis.end_to_end.report import describe_tables, measure_tables
from embedmask_mmdet.analysis.machine import describe_load, describe_machine


def run_benchmark(options: Options, command: str) -> str:
    """Build the models and let them take turns. Progress is printed to standard error.

    Args:
        options: Options of the benchmark.
        command: Command line that the description names.

    Returns:
        Description and tables in Markdown.

    Raises:
        InputError: If the models cannot be compared.
        CheckpointError: If a checkpoint cannot be loaded.
        FileNotFoundError: If the data is missing.
    """
    torch.set_num_threads(options.threads)
    init_default_scope('mmdet')
    MMLogger.get_instance('benchmark', log_level='WARNING')  # otherwise it lists how each weight is initialized
    with contextlib.redirect_stdout(sys.stderr):
        contestants = build_contestants(options)
        # Without a GPU all operators are there.
        left_out = warm_up(contestants, options) if options.device != 'cpu' else ''
        tables = list(measure_tables(contestants, options))
    lines = [describe_tables(command, options, len(contestants[0].turns)), '']
    lines.append(describe_machine(options.device) + describe_load())
    for table in tables:
        lines += ['', *table]
    if left_out:
        lines += ['', left_out]
    return '\n'.join(lines)
