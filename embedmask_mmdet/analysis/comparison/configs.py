"""The configs that are compared, and the configs of their trainings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from mmengine.config import Config

from embedmask_mmdet.errors import InputError

METRICS = {'segm': 'mask AP', 'bbox': 'box AP'}
REQUIRED_SETTINGS = ('model', 'train_dataloader', 'val_dataloader', 'val_evaluator')
EQUAL_BY_CHOICE = ('train_dataloader', 'val_dataloader', 'optim_wrapper')
Curve = dict[int, dict[str, float]]  # AP of each metric after a number of iterations


@dataclass
class Model:
    """A config that is compared, and what was measured of it.

    Args:
        name: Name of the config file, which the tables show.
        path: The config file.
        iterations: Iterations after which it is tested; training ends after the last of them.
        cfg: The config.
        curves: AP over iterations for each seed.
        step_seconds: Time of a training step in each round.
        num_parameters: Number of weights.
        timed_trained: Whether the timed steps were those of a trained model.
    """

    name: str
    path: str
    iterations: list[int]
    cfg: Config
    curves: dict[int, Curve] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    num_parameters: int = 0
    timed_trained: bool = True

    @property
    def metrics(self) -> list[str]:
        """Keys of :data:`METRICS` that its evaluators compute."""
        evaluators = self.cfg.val_evaluator if isinstance(self.cfg.val_evaluator, list) else [self.cfg.val_evaluator]
        names = [metric for evaluator in evaluators for metric in np.atleast_1d(evaluator.get('metric', []))]
        return [metric for metric in METRICS if metric in names]


@dataclass
class Options:
    """Options of a comparison.

    Args:
        configs: Config files; ``CONFIG:ITERATIONS`` for a shorter schedule.
        seeds: Number of seeds, which begin with 0.
        iterations: Iterations after which models are tested, ascending.
        scale: Factor that enlarges the input.
        rounds: Training steps that are timed.
        work_dir: Folder of the trainings.
        out: Markdown file of the tables. The JSON file next to it stores the curves.
        title: Title of the section in ``out``.
        report: Whether nothing is trained.
        root: Folder of the repository, which has ``tools/train.py``.
    """

    configs: Sequence[str]
    seeds: int
    iterations: list[int]
    scale: float
    rounds: int
    work_dir: Path
    out: Path
    title: str
    report: bool
    root: Path


def split_limit(argument: str) -> tuple[str, int | None]:
    """Split ``CONFIG:ITERATIONS`` into its parts; the second may be missing."""
    match = re.fullmatch(r'(.+\.py):(\d+)', argument)
    return (match[1], int(match[2])) if match else (argument, None)


def read_model(argument: str, iterations: Sequence[int]) -> Model:
    """Read a config.

    Args:
        argument: A file, or ``CONFIG:ITERATIONS``.
        iterations: Iterations after which models are tested.

    Raises:
        InputError: If the config lacks settings.
    """
    path, limit = split_limit(argument)
    cfg = Config.fromfile(path)
    missing = [name for name in REQUIRED_SETTINGS if name not in cfg]
    if missing:
        raise InputError(f'{path} has no {" and no ".join(missing)}.')
    last = limit or iterations[-1]
    model = Model(Path(path).stem, path, [*(i for i in iterations if i < last), last], cfg)
    if not model.metrics:
        raise InputError(f"{path}: metric of val_evaluator must contain 'bbox', 'segm' or both.")
    return model


def read_models(arguments: Sequence[str], iterations: Sequence[int]) -> list[Model]:
    """Read all configs.

    Args:
        arguments: A file or ``CONFIG:ITERATIONS`` for each model.
        iterations: Iterations after which models are tested.

    Raises:
        InputError: If they cannot be compared.
    """
    models = [read_model(argument, iterations) for argument in arguments]
    names = [model.name for model in models]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise InputError(f'several configs have the name {", ".join(sorted(repeated))}. Results need different names.')
    datasets = [model.cfg.val_dataloader.dataset for model in models]
    files = {f'{dataset.get("data_root")} {dataset.get("ann_file")}' for dataset in datasets}
    if len(files) > 1:
        raise InputError(f'the configs are tested on different data: {", ".join(sorted(files))}.')
    return models


def list_differences(models: Sequence[Model]) -> list[str]:
    """List the settings that should be equal in all configs, but differ from those of the first."""
    first, lines = models[0], []
    for model in models[1:]:
        names = [name for name in EQUAL_BY_CHOICE if model.cfg.get(name) != first.cfg.get(name)]
        if names:
            lines.append(f'{model.name} has another {" and ".join(names)} than {first.name}.')
    return lines


def find_pipeline(dataset: dict) -> list[dict]:
    """Return the last transforms of a dataset, which may be inside wrappers.

    Raises:
        InputError: If it has none.
    """
    while 'pipeline' not in dataset:
        if 'dataset' not in dataset:
            raise InputError(
                f'the dataset {dataset.get("type")} has no pipeline, so --scale cannot enlarge its images.'
            )
        dataset = dataset['dataset']
    return dataset['pipeline']


def enlarge_input(cfg: Config, factor: float) -> None:
    """Enlarge the input of the model: after all augmentation in training, where images are resized in tests.

    Raises:
        InputError: If images are not resized in tests.
    """
    pipeline = find_pipeline(cfg.train_dataloader.dataset)
    pipeline.insert(len(pipeline) - 1, dict(type='Resize', scale_factor=float(factor), keep_ratio=True))
    resizes = [step for step in find_pipeline(cfg.val_dataloader.dataset) if step['type'] == 'Resize']
    if not resizes:
        raise InputError('--scale needs a `Resize` in the pipeline of val_dataloader.')
    for step in resizes:
        name = 'scale' if 'scale' in step else 'scale_factor'
        value = step[name]
        step[name] = tuple(int(v * factor) for v in value) if name == 'scale' else float(value * factor)


def set_schedule(cfg: Config, iterations: Sequence[int]) -> None:
    """Train to the last of some iterations, and test after each of them."""
    last = iterations[-1]
    warm_up = last // 20
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, begin=warm_up, end=last, eta_min=0)]
    if warm_up > 1:
        linear = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up)
        cfg.param_scheduler.insert(0, linear)
    # An interval that equals the next iteration has no other multiple before it. MMEngine looks one iteration ahead
    # when it chooses the interval, so each begins two after the previous test.
    intervals = [(before + 2, iteration) for before, iteration in pairwise(iterations)]
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=last, val_interval=iterations[0], dynamic_intervals=intervals
    )
    cfg.val_cfg = dict(type='ValLoop')


def set_hooks(cfg: Config, last: int) -> None:
    """Log every iteration, and save only the final weights."""
    cfg.log_processor = dict(type='LogProcessor', window_size=1, by_epoch=False)
    backends = [dict(type='LocalVisBackend')]
    cfg.visualizer = dict(type='DetLocalVisualizer', vis_backends=backends, name='visualizer')
    cfg.default_hooks = cfg.get('default_hooks', {})
    cfg.default_hooks.update(
        logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=last, save_optimizer=False),
    )


def make_training_config(cfg: Config, iterations: Sequence[int], seed: int, scale: float) -> Config:
    """Make the config of a training.

    Args:
        cfg: Config of the model; it is not changed.
        iterations: Iterations after which it is tested; training ends after the last of them.
        seed: Seed of weights and batches.
        scale: Factor that enlarges the input.
    """
    cfg = Config(cfg.to_dict())
    if scale != 1:
        enlarge_input(cfg, scale)
    set_schedule(cfg, iterations)
    set_hooks(cfg, iterations[-1])
    cfg.randomness = dict(seed=seed)
    # Another process draws the samples, so that a model that draws random numbers does not change the batches.
    workers = max(1, cfg.train_dataloader.get('num_workers', 0))
    cfg.train_dataloader.update(num_workers=workers, persistent_workers=True)
    cfg.resume = False
    return cfg


def compute_fingerprint(cfg: Config) -> str:
    """Compute a digest of all settings that determine the result of a training. Tests on the way do not."""
    content = cfg.to_dict()
    for name in ('val_interval', 'dynamic_intervals'):
        content['train_cfg'].pop(name)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def name_training(model: Model, scale: float, seed: int) -> str:
    """Name a training and its folder. Trainings with other schedules or scales have other names."""
    enlarged = '' if scale == 1 else f'-x{scale:g}'
    return f'{model.name}{enlarged}-{model.iterations[-1]}it/seed{seed}'
