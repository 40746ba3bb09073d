"""Measure models that take turns, and format what was measured."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

from embedmask_mmdet.analysis.end_to_end.contestants import Contestant
from embedmask_mmdet.analysis.end_to_end.fixed_detections import CANDIDATES
from embedmask_mmdet.analysis.end_to_end.options import Options
from embedmask_mmdet.analysis.end_to_end.stages import STAGES
from embedmask_mmdet.analysis.random_boxes import MEDIAN_SIDE


def split_batches(num_images: int, total: int, batch_size: int) -> list[list[int]]:
    """Split ``total`` images into batches, beginning again with the first image of the dataset after the last."""
    return [
        [i % num_images for i in range(start, min(start + batch_size, total))] for start in range(0, total, batch_size)
    ]


def measure(contestants: Sequence[Contestant], options: Options) -> None:
    """Let the models take turns, batch by batch. Only the last measurement counts."""
    num_images = len(contestants[0].dataset)
    warmup = split_batches(num_images, options.warmup * options.batch_size, options.batch_size)
    batches = split_batches(num_images, options.images or num_images, options.batch_size)
    for i, indices in enumerate(warmup + batches):
        for contestant in contestants:
            if i == len(warmup):
                contestant.clear()
            contestant.take_turn(indices)
            if options.speed_only:
                contestant.clear_results()
        print(f'\r{i + 1}/{len(warmup + batches)} turns', end='', file=sys.stderr, flush=True)
    print(file=sys.stderr)


def measure_tables(contestants: Sequence[Contestant], options: Options) -> Iterator[list[str]]:
    """Measure, and yield the lines of a table for each number of detections, or of one table with metrics."""
    for number in options.detections:
        for contestant in contestants:
            contestant.fixed.set_number(number)
        measure(contestants, options)
        yield format_table(contestants)
    if not options.detections:
        measure(contestants, options)
        if not options.speed_only:
            for contestant in contestants:
                contestant.metrics = contestant.evaluator.evaluate(len(contestant.dataset))
        yield format_table(contestants)


def format_range(values: Sequence, form: Callable[[object], str] = str) -> str:
    """Format the lowest and the highest value, or one value if both are equal."""
    lowest, highest = min(values), max(values)
    return form(lowest) if lowest == highest else f'{form(lowest)} to {form(highest)}'


def format_table(contestants: Sequence[Contestant]) -> list[str]:
    """Format medians as a Markdown table with a column for each model and a row for each stage."""
    first, median = contestants[0], statistics.median

    def row(title: str, form: Callable[[Contestant], str]) -> str:
        return f'| {title} | {" | ".join(form(contestant) for contestant in contestants)} |'

    return [
        row('ms per image', lambda one: one.name),
        '| --- |' + ' ---: |' * len(contestants),
        *(row(stage, lambda one, stage=stage: f'{median(turn[stage] for turn in one.turns):.1f}') for stage in STAGES),
        row('**total**', lambda one: f'**{median(one.totals):.1f}**'),
        row(
            f'times {first.name}',
            lambda one: f'{median(theirs / ours for theirs, ours in zip(one.totals, first.totals)):.2f}',
        ),
        row('images per second', lambda one: f'{1e3 / median(one.totals):.2f}'),
        row('detections per image', lambda one: format_range(one.detections)),
        row('input', lambda one: format_range(one.input_shapes, lambda shape: 'x'.join(map(str, shape)))),
        *(row(name, lambda one, name=name: f'{one.metrics.get(name, math.nan):.3f}') for name in first.metrics),
    ]


def describe_tables(command: str, options: Options, turns: int) -> str:
    """Describe how the tables were measured.

    Args:
        command: Command line that measures them.
        options: Options of the benchmark.
        turns: Turns of each model.
    """
    fixed = (
        'The number of detections is fixed, so that all models do the same work whatever their weights are; weights '
        'without a checkpoint are random, from a fixed seed. The threshold is set so that '
        f'{CANDIDATES} class scores per detection pass it, and boxes keep their centers but get random sizes around '
        f'{MEDIAN_SIDE} input pixels (SOLOv2 has no boxes). '
    )
    autocast = '' if options.precision == 'float32' else f'Inference is under autocast to {options.precision}. '
    return (
        f'`{command}`: medians of {turns} turns after {options.warmup} turns of warm-up, {options.batch_size} '
        f'image{"s" * (options.batch_size > 1)} per turn. Models take turns in one process, so that other work on the '
        "machine affects all of them. Models after `--against` have the first model's backbone, and see its images "
        f'through their own test pipelines. {autocast}{fixed if options.detections else ""}'
        'Each moment counts for one stage, the innermost. "Loading" is the pipeline, in this process, with normalizing '
        'and padding; "heads" are all layers with weights after the neck, including RPN and the boxes of RoIs; "NMS" '
        'includes decoding of boxes; "mask stage" is the work per detection, from its RoI (Mask R-CNN) or its dynamic '
        'convolutions (CondInst) to the mask in original pixels; "encoding" is what the metrics do with the result. '
        'Measure on an idle machine; on a busy one set `OMP_WAIT_POLICY=passive`.'
    )
