"""Make a checkpoint small enough to share: the weights as float16, without the state of the training."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.fileio import write_atomically

KEPT_META = ('cfg', 'dataset_meta', 'mmengine_version')


def halve(name: str, weight: Tensor) -> Tensor:
    """Turn a weight into float16; integers stay as they are.

    Raises:
        InputError: If it is too large for float16.
    """
    if not weight.is_floating_point():
        return weight
    half = weight.half()
    if not half.isfinite().all():
        raise InputError(f'{name} has values that are too large for float16, or NaN. Train again with a lower lr.')
    return half


def publish(src: Path, dst: Path) -> None:
    """Write the weights of a checkpoint as float16, with config and classes. Models load it as float32.

    Args:
        src: Checkpoint that training wrote.
        dst: File to write.

    Raises:
        CheckpointError: If ``src`` cannot be read.
        InputError: If weights are too large for float16.
    """
    checkpoint = CheckpointLoader.load_checkpoint(str(src), map_location='cpu')
    meta = {name: value for name, value in checkpoint.get('meta', {}).items() if name in KEPT_META}
    weights = type(checkpoint['state_dict'])()
    for name, weight in checkpoint['state_dict'].items():
        weights[name] = halve(name, weight)
    if hasattr(checkpoint['state_dict'], '_metadata'):
        weights._metadata = checkpoint['state_dict']._metadata
    buffer = io.BytesIO()
    torch.save({'meta': meta, 'state_dict': weights}, buffer)
    write_atomically(dst, buffer.getvalue())
