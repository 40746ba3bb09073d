"""What the reference implementation computed, and our heads with its weights.

The arrays under ``data`` come from the authors' code on the CPU in float32; their weights are drawn by name.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn

from embedmask_mmdet.converters.authors import to_mmdet
from embedmask_mmdet.models import EmbedMaskBBoxHead, EmbedMaskLocationFrame, EmbedMaskMaskHead

DATA = Path(__file__).parent / 'data'
NUM_CLASSES = 3
INPUT_SIZE = (256, 320)

# What the name of a weight tells of its distribution: a factor on the standard deviation.
STD_FACTORS = {
    'stem': 1 / 60,
    'cls_logits': 0.5,
    'centerness': 0.5,
    'bbox_pred': 1.5,
    'spatial_embed_pred': 0.1,
    'other_embed_pred': 0.45,
    'margin_pred': 4,
}
BIAS_SHIFTS = {'cls_logits': -2.5, 'bbox_pred': 2.5, 'margin_pred': math.log(-math.log(0.5) / 4)}


def draw_weight(name: str, shape: list[int]) -> Tensor:
    """Draw the weight that the reference was given under this name."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), 0])
    z = rng.standard_normal(shape).astype(np.float32)
    if name.endswith('running_var'):
        return torch.from_numpy(np.abs(1 + 0.1 * z))
    if name.endswith('running_mean'):
        return torch.from_numpy(0.1 * z)
    if name.endswith('.scale') or (name.endswith('weight') and len(shape) == 1):
        return torch.from_numpy((0.3 if '.bn3' in name else 1.0) * (1 + np.float32(0.1) * z))
    if name.endswith('weight'):
        std = math.sqrt(2 / math.prod(shape[1:]))
        std *= math.prod(factor for part, factor in STD_FACTORS.items() if part in name)
        return torch.from_numpy((std * z).astype(np.float32))
    shift = sum(shift for part, shift in BIAS_SHIFTS.items() if part in name)
    return torch.from_numpy((0.05 * z + shift).astype(np.float32))


def draw_state_dict(key_list: str, prefix: str = '') -> dict[str, Tensor]:
    """Draw all weights of a list under ``data``, by the authors' names: the list's with `prefix` before each."""
    shapes = json.loads((DATA / f'{key_list}.json').read_text())
    return {prefix + name: draw_weight(prefix + name, shape) for name, shape in shapes.items()}


class Heads(nn.Module):
    """Our two heads and their frame in the reference's small size and with its weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = dict(in_channels=32, feat_channels=32)
        self.bbox_head = EmbedMaskBBoxHead(NUM_CLASSES, **widths)
        self.mask_head = EmbedMaskMaskHead(**widths)
        self.frame = EmbedMaskLocationFrame()
        self.load_state_dict(to_mmdet(draw_state_dict('head_state_dict', prefix='rpn.head.'), self))


def features() -> tuple[Tensor, ...]:
    """Load the feature maps of two images."""
    arrays = np.load(DATA / 'head.npz')
    return tuple(torch.from_numpy(arrays[f'feat{level}']) for level in range(5))


def levels(arrays: np.lib.npyio.NpzFile, name: str) -> list[Tensor]:
    """Load one output of all levels."""
    return [torch.from_numpy(arrays[f'{name}{level}']) for level in range(5)]


def ground_truth() -> list[InstanceData]:
    """Load the instances of two images; labels count from 0 as in MMDetection."""
    arrays = np.load(DATA / 'loss.npz')
    instances = []
    for img in range(2):
        height, width = arrays[f'img_shape{img}']
        masks = np.unpackbits(arrays[f'gt_masks{img}'], axis=-1)[..., :width]
        instances.append(
            InstanceData(
                bboxes=torch.from_numpy(arrays[f'gt_bboxes{img}']),
                labels=torch.from_numpy(arrays[f'gt_labels{img}']) - 1,
                masks=BitmapMasks(masks, height, width),
            )
        )
    return instances


def relative_error(actual: Tensor, expected: Tensor | np.ndarray) -> float:
    """Compare with the largest expected value."""
    expected = torch.as_tensor(expected)
    return float((actual.detach() - expected).abs().max() / expected.abs().max())
