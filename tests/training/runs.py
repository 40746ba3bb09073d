"""A run of training that takes seconds and has nothing random in it but its first weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.builders import tiny_cfg

_run_number = itertools.count()


def short_run_cfg(data_root: Path, work_dir: Path, epochs: int = 1, **checkpoint) -> Config:
    """Narrow the tiny config further, and leave out validation, flips and empty-image filters."""
    cfg = tiny_cfg(data_root, work_dir, epochs)
    cfg.merge_from_dict(
        {
            'model.backbone.base_channels': 8,
            'model.backbone.stem_channels': 8,
            'model.neck.in_channels': [8, 16, 32, 64],
            'train_dataloader.dataset.filter_cfg': dict(filter_empty_gt=False),
            'randomness': dict(seed=0),
        }
    )
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [step for step in dataset.pipeline if step.type != 'RandomFlip']
    cfg.default_hooks.checkpoint.update(checkpoint)
    return cfg


def train(cfg: Config, resume: bool = False, hooks: tuple[Hook, ...] = ()) -> Runner:
    """Run a config from its beginning or from its last checkpoint."""
    cfg = cfg.copy()
    cfg.resume = resume
    cfg.experiment_name = f'small{next(_run_number)}'
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


class Record(Hook):
    """Keeps what a run did: its epochs, counted from 1, and its losses."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.losses: list[dict[str, float]] = []

    def before_train_epoch(self, runner: Runner) -> None:
        self.epochs.append(runner.epoch + 1)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs=None) -> None:
        self.losses.append({name: float(value) for name, value in outputs.items()})


def largest_difference(state_dict: dict, other: dict) -> float:
    """Compare two models' weights."""
    return max(float((torch.as_tensor(other[name]) - weight).abs().max()) for name, weight in state_dict.items())


@HOOKS.register_module(force=True)
class WriteLosses(Record):
    """Leaves each process's losses in the folder of the run."""

    def after_train(self, runner: Runner) -> None:
        Path(runner.work_dir, f'losses{get_rank()}.json').write_text(json.dumps(self.losses))
