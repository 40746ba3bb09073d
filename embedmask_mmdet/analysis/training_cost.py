"""Measure seconds and memory of a training step of models at full size, on images and instances that are drawn."""

from __future__ import annotations

import copy
import gc
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData

from embedmask_mmdet.analysis.comparison.timing import silence_logger, time_step
from embedmask_mmdet.analysis.configs import load_installed_config
from embedmask_mmdet.analysis.end_to_end.contestants import build_model, make_rival_config
from embedmask_mmdet.analysis.end_to_end.options import RIVALS
from embedmask_mmdet.analysis.machine import read_growth, reset_peak
from embedmask_mmdet.analysis.mask_loss import draw_masks
from embedmask_mmdet.analysis.operators import explain_failure
from embedmask_mmdet.locations import CONFIGS

OURS = {'EmbedMask': 'embedmask_r50_1x_coco.py', 'EmbedMask plus': 'embedmask-plus_r50_1x_coco.py'}
FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'
PEERS = ('condinst', 'mask-rcnn', 'solov2')
HEADER = '| | precision | ms per step | against {} | peak MB |\n| --- | --- | ---: | ---: | ---: |'
# The optimizer costs the same at any rate, and at this one weights without pretraining stay finite.
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Case:
    """What a batch has, and how often a step is timed.

    Args:
        num_imgs: Images in the batch.
        num_instances: Instances in each image.
        img_shape: Height and width of the images, multiples of 32.
        warmup: Steps that do not count.
        steps: Steps that are timed.
    """

    num_imgs: int = 2
    num_instances: int = 20
    img_shape: tuple[int, int] = (800, 1088)
    warmup: int = 2
    steps: int = 8


class Cost(NamedTuple):
    """Median milliseconds of a step, and the most MB that the model and the step take."""

    ms: float
    megabytes: float


def draw_batch(case: Case) -> dict:
    """Draw a batch as a dataloader gives it: noise, and ellipses that occlude each other."""
    rng = np.random.default_rng(0)
    inputs, samples = [], []
    for img_id in range(case.num_imgs):
        inputs.append(torch.from_numpy(rng.integers(0, 256, (3, *case.img_shape), dtype=np.uint8)))
        masks = draw_masks(2 * case.num_instances, case.img_shape, rng)
        # Some are hidden by others.
        masks = masks[masks.any(axis=(1, 2))][: case.num_instances]
        bitmaps = BitmapMasks(masks, *case.img_shape)
        instances = InstanceData(
            bboxes=bitmaps.get_bboxes(HorizontalBoxes).tensor,
            labels=torch.from_numpy(rng.integers(0, 80, len(masks))),
            masks=bitmaps,
        )
        metainfo = dict(img_id=img_id, img_shape=case.img_shape, ori_shape=case.img_shape, scale_factor=(1.0, 1.0))
        samples.append(DetDataSample(gt_instances=instances, metainfo=metainfo))
    return dict(inputs=inputs, data_samples=samples)


def list_models() -> dict[str, Config]:
    """Return the configs that are measured, by the names that the table shows; all have our backbone."""
    cfgs = {name: Config.fromfile(CONFIGS / file) for name, file in OURS.items()}
    cfgs['FCOS'] = load_installed_config(FCOS)
    return cfgs | {RIVALS[name].title: make_rival_config(name, cfgs['EmbedMask']) for name in PEERS}


def free_memory(device: str) -> None:
    """Free the memory of what is no longer used."""
    gc.collect()
    if device != 'cpu':
        torch.cuda.empty_cache()


def measure_steps(model: BaseModel, cfg: Config, precision: str, case: Case, device: str) -> Cost:
    """Measure training steps: forward, backward and optimizer, without data loading.

    Args:
        model: The model.
        cfg: Its config, for the optimizer.
        precision: ``'float32'``, or what MMEngine's ``AmpOptimWrapper`` takes.
        case: The batch, and the number of steps.
        device: Device to train on.
    """
    wrapper = cfg.optim_wrapper.to_dict()
    wrapper['optimizer']['lr'] = LEARNING_RATE
    if precision != 'float32':
        # Steps with infinite gradients would be skipped, and the default scale needs many steps to become small enough.
        wrapper.update(type='AmpOptimWrapper', dtype=precision, loss_scale=dict(init_scale=8.0))
    batch = draw_batch(case)
    free_memory(device)
    before = reset_peak(device)
    with silence_logger():
        optim_wrapper = build_optim_wrapper(model.to(device).train(), wrapper)
    for _ in range(case.warmup):
        time_step(model, optim_wrapper, batch)
    seconds = [time_step(model, optim_wrapper, batch) for _ in range(case.steps)]
    return Cost(1e3 * statistics.median(seconds), read_growth(device, before) / 2**20)


def measure_table(case: Case, precisions: Sequence[str], device: str) -> Iterator[str]:
    """Measure all models, one after the other, and yield the lines of a Markdown table.

    Args:
        case: The batch, and the number of steps.
        precisions: Precisions of each model, see :func:`measure_steps`.
        device: Device to train on.

    Raises:
        RuntimeError: If one of our models fails, after the last line. Others are only left out.
    """
    first: dict[str, float] = {}
    failures: list[tuple[str, str]] = []
    cfgs = list_models()
    yield HEADER.format(next(iter(cfgs)))
    for name, precision in itertools.product(cfgs, precisions):
        try:
            model = build_model(copy.deepcopy(cfgs[name]), None)
            ms, megabytes = measure_steps(model, cfgs[name], precision, case, device)
        except Exception as error:
            failures.append((name, explain_failure(f'{name} in {precision}', error)))
            continue
        ratio = ms / first.setdefault(precision, ms)
        yield f'| {name} | {precision} | {ms:.1f} | {ratio:.2f} | {megabytes:.0f} |'
    yield ''.join(f'\n{reason}\n' for _, reason in failures)
    ours = [reason for name, reason in failures if name in OURS]
    if ours:
        raise RuntimeError(' '.join(ours))
