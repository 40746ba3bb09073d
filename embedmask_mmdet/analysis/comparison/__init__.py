"""Train models for equally many iterations on equal data, and compare their AP over iterations and over time."""

from __future__ import annotations

import sys

from mmengine.registry import init_default_scope

from embedmask_mmdet.analysis.comparison.configs import Options, list_differences, read_models
from embedmask_mmdet.analysis.comparison.report import write_report
from embedmask_mmdet.analysis.comparison.timing import time_steps
from embedmask_mmdet.analysis.comparison.training import complete_curve, store_curves


def run_comparison(options: Options) -> int:
    """Train and time the models, and write the report.

    Returns:
        The number of trainings that failed, or that were not done because of ``options.report``.

    Raises:
        InputError: If the configs cannot be compared.
        FileNotFoundError: If their data is missing.
    """
    models = read_models(options.configs, options.iterations)
    init_default_scope('mmdet')
    for line in list_differences(models):
        print(f'Note: {line}', file=sys.stderr)
    # All models with one seed before the next seed, so that an interrupted comparison is still useful.
    for seed in range(options.seeds):
        for model in models:
            complete_curve(model, seed, options)
    trained = [model for model in models if model.curves]
    if trained:
        store_curves(trained, options)
        time_steps(trained, options)
        write_report(trained, options)
    return sum(options.seeds - len(model.curves) for model in models)
