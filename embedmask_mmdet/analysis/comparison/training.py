"""Train models, and read and store their AP over iterations."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from embedmask_mmdet.analysis.comparison.configs import (
    METRICS,
    Curve,
    Model,
    Options,
    compute_fingerprint,
    make_training_config,
    name_training,
)
from embedmask_mmdet.fileio import write_atomically


class TrainingError(RuntimeError):
    """A training failed; the message is the last line of its log."""


def read_log(folder: Path, metrics: Sequence[str]) -> tuple[Curve, float]:
    """Read MMEngine's latest log in a folder.

    Args:
        folder: Folder of a training.
        metrics: Keys of ``METRICS``.

    Returns:
        AP over iterations, and the median seconds of an iteration.
    """
    log = max(folder.glob('*/vis_data/scalars.json'), key=os.path.getmtime)
    curve, seconds = {}, []
    for line in log.read_text().splitlines():
        values = json.loads(line)
        if 'loss' in values:
            seconds.append(values['time'])
            continue
        aps = {metric: values[key] for metric in metrics for key in values if key.endswith(f'{metric}_mAP')}
        # MMDetection reports no AP if nothing was detected.
        curve[values['step']] = {metric: aps.get(metric, 0.0) for metric in metrics}
    return curve, statistics.median(seconds)


def read_json(path: Path) -> dict:
    """Read a JSON file, or return an empty dict if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else {}


def select_curve(result: dict, cfg: Config, iterations: Sequence[int]) -> Curve | None:
    """Return the curve of a stored result if it belongs to this config and has these iterations.

    Args:
        result: ``fingerprint`` and ``curve`` of a training.
        cfg: Config of the training.
        iterations: Iterations that the curve must have.
    """
    curve = {int(iteration): aps for iteration, aps in result.get('curve', {}).items()}
    is_same = result.get('fingerprint') == compute_fingerprint(cfg)
    return curve if is_same and set(iterations) <= curve.keys() else None


def find_curve(model: Model, seed: int, options: Options) -> Curve | None:
    """Find the curve of a finished training, in its folder or among the results of earlier comparisons."""
    name = name_training(model, options.scale, seed)
    cfg = make_training_config(model.cfg, model.iterations, seed, options.scale)
    stored = read_json(options.out.with_suffix('.json')).get(name, {})
    results = (read_json(options.work_dir / name / 'result.json'), stored)
    curves = (select_curve(result, cfg, model.iterations) for result in results)
    return next((curve for curve in curves if curve is not None), None)


def run_training(cfg: Config, folder: Path, train_tool: Path) -> None:
    """Run ``tools/train.py`` in its own process, which logs to ``train.log``.

    Args:
        cfg: Config of the training.
        folder: Folder of the training, which exists.
        train_tool: Path of ``tools/train.py``.

    Raises:
        TrainingError: If it fails.
    """
    cfg.dump(folder / 'config.py')
    log = folder / 'train.log'
    command = [sys.executable, train_tool, folder / 'config.py', '--work-dir', folder]
    with log.open('w') as stream:
        code = subprocess.run(list(map(str, command)), stdout=stream, stderr=subprocess.STDOUT).returncode
    if code:
        lines = log.read_text().strip().splitlines() or [f'exit code {code}, the log is empty']
        raise TrainingError(lines[-1])


def train_model(model: Model, seed: int, options: Options) -> Curve:
    """Train a model and store the result in the folder of the training.

    Returns:
        AP over iterations.

    Raises:
        TrainingError: If the training fails.
    """
    folder = options.work_dir / name_training(model, options.scale, seed)
    cfg = make_training_config(model.cfg, model.iterations, seed, options.scale)
    folder.mkdir(parents=True, exist_ok=True)
    print(f'{model.name}, seed {seed}: training, see {folder / "train.log"}', flush=True)
    run_training(cfg, folder, options.root / 'tools' / 'train.py')
    curve, seconds = read_log(folder, model.metrics)
    result = dict(fingerprint=compute_fingerprint(cfg), curve=curve, seconds_an_iteration=seconds)
    write_atomically(folder / 'result.json', json.dumps(result, indent=1))
    return curve


def complete_curve(model: Model, seed: int, options: Options) -> None:
    """Add the curve of one seed to a model: find it, or train the model. Print the AP, or why there is none."""
    curve = find_curve(model, seed, options)
    if curve is None and options.report:
        print(f'{model.name}, seed {seed}: not trained', file=sys.stderr, flush=True)
        return
    if curve is None:
        try:
            curve = train_model(model, seed, options)
        except TrainingError as error:
            print(f'{model.name}, seed {seed}: FAILED: {error}', file=sys.stderr, flush=True)
            return
    model.curves[seed] = curve
    aps = [
        f'{METRICS[metric]} ' + ' / '.join(f'{curve[i][metric]:.3f}' for i in model.iterations)
        for metric in model.metrics
    ]
    print(f'{model.name}, seed {seed}: {"; ".join(aps)}', flush=True)


def store_curves(models: Sequence[Model], options: Options) -> None:
    """Write the curves of models to the JSON file, and keep what it has of other models."""
    path = options.out.with_suffix('.json')
    results = read_json(path)
    for model in models:
        for seed, curve in model.curves.items():
            cfg = make_training_config(model.cfg, model.iterations, seed, options.scale)
            results[name_training(model, options.scale, seed)] = dict(fingerprint=compute_fingerprint(cfg), curve=curve)
    lines = ',\n'.join(f'{json.dumps(name)}: {json.dumps(results[name])}' for name in sorted(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f'{{\n{lines}\n}}\n')
