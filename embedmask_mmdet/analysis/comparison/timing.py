"""Time training steps of models that take turns."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.runner import Runner, load_checkpoint

from embedmask_mmdet.analysis.comparison.configs import Model, Options, make_training_config, name_training


@contextlib.contextmanager
def silence_logger() -> Iterator[None]:
    """Log only errors, not the learning rate of each parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)


def load_trained(model: Model, folder: Path) -> tuple[BaseModel, OptimWrapper]:
    """Build a network and its optimizer, and count its parameters.

    Args:
        model: The model; ``num_parameters`` and ``timed_trained`` are set.
        folder: Folder of its training. If it has no weights, as it was trained on another machine, they are random.
    """
    network = MODELS.build(model.cfg.model)
    checkpoint = folder / f'iter_{model.iterations[-1]}.pth'
    model.timed_trained = checkpoint.exists()
    model.num_parameters = sum(parameter.numel() for parameter in network.parameters())
    with silence_logger():
        if model.timed_trained:
            load_checkpoint(network, str(checkpoint), map_location='cpu', logger='silent')
        else:
            network.init_weights()
        network.to(get_device()).train()
        return network, build_optim_wrapper(network, model.cfg.optim_wrapper)


def time_step(network: BaseModel, optim_wrapper: OptimWrapper, batch: dict) -> float:
    """Train one step and return its seconds."""
    batch = copy.deepcopy(batch)  # some models change the masks in their samples
    start = time.perf_counter()
    network.train_step(batch, optim_wrapper)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_steps(models: Sequence[Model], options: Options) -> None:
    """Time training steps of trained models, without data loading, and set ``step_seconds``.

    Models take turns on the same batches, so that other work on the machine affects all steps of a round alike. That
    would not be so in trainings that run one after another.
    """
    first = models[0]
    cfg = make_training_config(first.cfg, first.iterations, 0, options.scale)
    batches = cycle(Runner.build_dataloader(cfg.train_dataloader, seed=0))
    folders = [options.work_dir / name_training(model, options.scale, min(model.curves)) for model in models]
    loaded = [load_trained(model, folder) for model, folder in zip(models, folders)]
    for round_number in range(options.rounds + 1):
        batch = next(batches)
        seconds = [time_step(network, optim_wrapper, batch) for network, optim_wrapper in loaded]
        if round_number:  # the first round is warm-up
            for model, step_seconds in zip(models, seconds):
                model.step_seconds.append(step_seconds)


def compute_relative_seconds(model: Model, first: Model) -> list[float]:
    """Divide each step by the first model's step in the same round. Return the quartiles."""
    return np.quantile(np.divide(model.step_seconds, first.step_seconds), [0.25, 0.5, 0.75]).tolist()
