"""Tables and plots of a comparison."""

from __future__ import annotations

import os
import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.device import get_device

from embedmask_mmdet.analysis.comparison.configs import METRICS, Model, Options, list_differences
from embedmask_mmdet.analysis.comparison.timing import compute_relative_seconds
from embedmask_mmdet.analysis.machine import describe_machine
from embedmask_mmdet.analysis.markdown import write_section


def trace_curve(model: Model, metric: str, seed: int) -> tuple[list[int], list[float]]:
    """Return iterations, beginning with 0, and AP."""
    points = {iteration: aps[metric] for iteration, aps in sorted(model.curves[seed].items())}
    return [0, *points], [0.0, *points.values()]


def interpolate_ap(model: Model, first: Model, metric: str, seed: int) -> float:
    """Return the AP after the time of the first model's training, interpolated between tests."""
    iterations = first.iterations[-1] / compute_relative_seconds(model, first)[1]
    return float(np.interp(iterations, *trace_curve(model, metric, seed)))


def have_curves(models: Sequence[Model]) -> bool:
    """Return whether models were tested more than once. A single test says nothing about the time before it."""
    return len({iteration for model in models for iteration in model.iterations}) > 1


def format_mean(values: Sequence[float]) -> str:
    """Format mean and standard deviation."""
    if not values:
        return '-'
    spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.3f}{spread}'


def format_name(model: Model, iterations: Sequence[int], num_seeds: int) -> str:
    """Format the name of a model, with its schedule and its number of seeds if they are not the usual ones."""
    last = model.iterations[-1]
    schedule = '' if last == iterations[-1] else f', schedule of {last}'
    seeds = '' if len(model.curves) == num_seeds else f', seeds: {len(model.curves)}'
    return model.name + schedule + seeds


def format_aps(models: Sequence[Model], metric: str, iterations: Sequence[int]) -> str:
    """Format AP as a Markdown table.

    Args:
        models: Models with this metric; the others are compared with the first.
        metric: Key of ``METRICS``.
        iterations: Iterations that get a column.
    """
    first, with_time = models[0], have_curves(models)
    num_seeds = max(len(model.curves) for model in models)
    titles = [METRICS[metric], *(f'{i} it' for i in iterations)]
    if with_time:
        titles.append(f'in the time of {first.name}')
    lines = [f'| {" | ".join(titles)} |', f'| --- |{" ---: |" * (len(titles) - 1)}']
    for model in models:
        columns = [format_mean([curve[i][metric] for curve in model.curves.values() if i in curve]) for i in iterations]
        if with_time:
            columns.append(format_mean([interpolate_ap(model, first, metric, seed) for seed in model.curves]))
        lines.append(f'| {format_name(model, iterations, num_seeds)} | {" | ".join(columns)} |')
    return '\n'.join(lines)


def format_costs(models: Sequence[Model]) -> str:
    """Format seconds and parameters as a Markdown table."""
    first = models[0]
    lines = [
        f'| | seconds per iteration | against {first.name} | million parameters |',
        '| --- | ---: | ---: | ---: |',
    ]
    for model in models:
        low, median, high = compute_relative_seconds(model, first)
        against = '1' if model is first else f'{median:.2f} ({low:.2f} to {high:.2f})'
        seconds = statistics.median(model.step_seconds)
        lines.append(f'| {model.name} | {seconds:.3f} | {against} | {model.num_parameters / 1e6:.2f} |')
    return '\n'.join(lines)


def draw_curves(axes: Axes, models: Sequence[Model], metric: str) -> None:
    """Draw a metric of all models that have it: the mean over seeds, and the range between lowest and highest."""
    for number, model in enumerate(models):
        if metric not in model.metrics:
            continue
        curves = [trace_curve(model, metric, seed) for seed in model.curves]
        shared = sorted(set.intersection(*(set(iterations) for iterations, _ in curves)))
        aps = np.array([np.interp(shared, *curve) for curve in curves])
        axes.plot(shared, aps.mean(0), f'C{number}.-', label=model.name)
        axes.fill_between(shared, aps.min(0), aps.max(0), color=f'C{number}', alpha=0.2, linewidth=0)
    axes.set(xlabel='iterations', ylabel=METRICS[metric], xlim=(0, None))
    axes.grid(alpha=0.3)


def plot_curves(models: Sequence[Model], path: Path) -> None:
    """Plot AP over iterations, one diagram for each metric."""
    with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'comparison', 'font.family': 'sans-serif'}):
        figure = Figure(figsize=(10, 4.5), layout='constrained')
        for axes, metric in zip(figure.subplots(1, 2, sharey=True), METRICS):
            draw_curves(axes, models, metric)
        # Both diagrams share the axis, so its limit is set after both are drawn.
        axes.set_ylim(0, None)
        # The second diagram shows all models, as all have boxes.
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc='outside lower center', ncols=3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={'Date': None} if path.suffix == '.svg' else None)


def format_command(options: Options) -> str:
    """Return the command that repeats a comparison from the folder of the repository."""
    configs = [os.path.relpath(path, options.root) if Path(path).is_absolute() else path for path in options.configs]
    arguments = ['--seeds', options.seeds, '--iterations', *options.iterations, '--title', options.title]
    if options.scale != 1:
        arguments += ['--scale', f'{options.scale:g}']
    return shlex.join(['python', 'tools/analysis_tools/compare_models.py', *configs, *map(str, arguments)])


def describe_conditions(models: Sequence[Model], options: Options) -> str:
    """Describe what the figures of a comparison are, and on which machine they were measured."""
    num_seeds = max(len(model.curves) for model in models)
    sentences = [
        f'Mean and standard deviation over {num_seeds} seeds.' if num_seeds > 1 else 'One seed.',
        f'All iterations belong to one schedule, a warm-up and a cosine that ends at {options.iterations[-1]}.',
    ]
    if options.scale != 1:
        sentences.append(f'Inputs are enlarged by {options.scale:g}.')
    if have_curves(models):
        sentences.append(
            'The last column is AP after the time that the first model trains in total, interpolated between tests.'
        )
    sentences += [
        f'Seconds are medians over {options.rounds} training steps of trained models that take turns on the same '
        'batches, without data loading; ratios are computed within a round, the median and the middle half are shown.',
        *(f'{model.name} was timed untrained.' for model in models if not model.timed_trained),
        *list_differences(models),
        describe_machine(get_device()),
    ]
    return ' '.join(sentences)


def write_report(models: Sequence[Model], options: Options) -> None:
    """Print the tables, and write them, with a plot if models were tested more than once."""
    with_metric = {metric: [model for model in models if metric in model.metrics] for metric in METRICS}
    tables = [format_aps(some, metric, options.iterations) for metric, some in with_metric.items() if some]
    tables.append(format_costs(models))
    paragraphs = [f'`{format_command(options)}`', describe_conditions(models, options), *tables]
    written = [options.out]
    if have_curves(models):
        slug = re.sub('[^a-z0-9]+', '-', options.title.lower()).strip('-')
        picture = options.out.with_name(f'{options.out.stem}-{slug}.svg')
        plot_curves(models, picture)
        paragraphs.append(f'![AP over iterations]({picture.name})')
        written.append(picture)
    write_section(options.out, options.title, '\n\n'.join(paragraphs), page_title='Accuracy')
    print('', *tables, f'written to {" and ".join(map(str, written))}', sep='\n\n')
