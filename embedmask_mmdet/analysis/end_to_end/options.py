"""Options of the end-to-end benchmark, and MMDetection's models that it knows by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from embedmask_mmdet.errors import InputError


class Rival(NamedTuple):
    """Title of a model, and its config under ``mmdet/.mim/configs``."""

    title: str
    config: str


RIVALS = {
    'mask-rcnn': Rival('Mask R-CNN', 'mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py'),
    'condinst': Rival('CondInst', 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py'),
    'solov2': Rival('SOLOv2', 'solov2/solov2_r50_fpn_1x_coco.py'),
    'yolact': Rival('YOLACT', 'yolact/yolact_r50_8xb8-55e_coco.py'),
}
PRECISIONS = ('float32', 'float16', 'bfloat16')
DEFAULT_IMAGES, DEFAULT_DETECTIONS = 20, 100
LEAST_VALUES = dict(batch_size=1, warmup=0, images=1, threads=1)


def parse_rivals(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Parse ``MODEL[=CHECKPOINT]``.

    Args:
        arguments: For each model its name in :data:`RIVALS` or a config file; ``'all'`` for all of :data:`RIVALS`.

    Returns:
        Name or config of each model, and its checkpoint or None.

    Raises:
        InputError: If a model is unknown.
    """
    if 'all' in arguments:
        arguments = list(RIVALS)
    rivals = []
    for argument in arguments:
        name, _, checkpoint = argument.partition('=')
        if name not in RIVALS and not Path(name).is_file():
            raise InputError(f'--against takes {", ".join(RIVALS)}, all, or the path of a config; got {name}.')
        rivals.append((name, checkpoint or None))
    return rivals


@dataclass
class Options:
    """Options of the benchmark.

    Args:
        config: Config of the first model, which has the images and the metrics.
        checkpoint: Its weights; None for random ones.
        rivals: Names or configs of other models, each with its checkpoint or None.
        device: ``'cpu'`` or a CUDA device.
        precision: One of :data:`PRECISIONS`; others than float32 by autocast.
        threads: CPU threads.
        batch_size: Images per turn.
        images: Images in total; None for 20 with ``speed_only``, otherwise for all.
        warmup: Turns that do not count.
        detections: Numbers of detections per image, each with its own table; 0 for what the weights detect; None for
            100 if a model has no checkpoint, otherwise for what the weights detect.
        speed_only: Whether the models are not evaluated.
        cfg_options: Settings that replace those of ``config``.

    Raises:
        InputError: If options are out of range or do not fit together.
    """

    config: str
    checkpoint: str | None = None
    rivals: Sequence[tuple[str, str | None]] = ()
    device: str = 'cpu'
    precision: str = 'float32'
    threads: int = 2
    batch_size: int = 1
    images: int | None = None
    warmup: int = 2
    detections: Sequence[int] | None = None
    speed_only: bool = False
    cfg_options: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_values()
        without = [name for name, checkpoint in self.models if not checkpoint]
        if self.speed_only:
            self.images = self.images or DEFAULT_IMAGES
            if self.detections is None:
                self.detections = [DEFAULT_DETECTIONS] if without else []
        else:
            self._check_evaluation(without)
        self.detections = [number for number in self.detections or () if number]

    @property
    def models(self) -> list[tuple[str, str | None]]:
        """Name or config of each model, the first included, and its checkpoint or None."""
        return [(self.config, self.checkpoint), *self.rivals]

    def _check_values(self) -> None:
        for name, least in LEAST_VALUES.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f'--{name.replace("_", "-")} must be at least {least}, got {value}.')
        if min(self.detections or [0]) < 0:
            raise InputError(f'--detections must be at least 0, got {min(self.detections)}.')
        if self.device != 'cpu' and not torch.cuda.is_available():
            raise InputError(f'this torch has no GPU for --device {self.device}.')

    def _check_evaluation(self, without_checkpoint: Sequence[str]) -> None:
        if without_checkpoint:
            raise InputError(
                f'{without_checkpoint[0]} has no checkpoint to evaluate. Name one (with --against: MODEL=CHECKPOINT), '
                'or give --speed-only.'
            )
        if self.images or self.detections:
            raise InputError(
                '--images and --detections need --speed-only. Metrics are computed from all images and detections.'
            )
