"""The authors' network and inference in plain PyTorch, run straight from a checkpoint with their names.

An oracle for the converter and for the COCO configs, so it shares nothing with the package or with MMDetection. Arrays
of the authors' code check its head and its masks, as they check ours.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)
MEAN = (102.9801, 115.9465, 122.7717)  # of B, G, R
PADDED_TO = 32
MASK_STRIDE = 4
OUTSIDE = -10.0


class AuthorsNetwork:
    """Runs weights by name.

    Args:
        weights: Of R50 or R101, without the prefix ``module.``.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f'{name}.weight']
        return F.conv2d(x, weight, self.weights.get(f'{name}.bias'), stride, padding=weight.shape[-1] // 2)

    def frozen_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            self.weights[f'{name}.{leaf}'][:, None, None] for leaf in ('weight', 'bias', 'running_mean', 'running_var')
        )
        return (x - mean) * var.rsqrt() * weight + bias

    def bottleneck(self, name: str, x: Tensor, stride: int) -> Tensor:
        # In caffe's ResNet the first convolution strides, in torchvision's the second.
        y = self.frozen_norm(f'{name}.bn1', self.conv(f'{name}.conv1', x, stride)).relu()
        y = self.frozen_norm(f'{name}.bn2', self.conv(f'{name}.conv2', y)).relu()
        y = self.frozen_norm(f'{name}.bn3', self.conv(f'{name}.conv3', y))
        if f'{name}.downsample.0.weight' in self.weights:
            x = self.frozen_norm(f'{name}.downsample.1', self.conv(f'{name}.downsample.0', x, stride))
        return (x + y).relu()

    def backbone(self, x: Tensor) -> list[Tensor]:
        """Return C3 to C5."""
        stem, body = 'backbone.body.stem', 'backbone.body'
        x = F.max_pool2d(self.frozen_norm(f'{stem}.bn1', self.conv(f'{stem}.conv1', x, 2)).relu(), 3, 2, padding=1)
        maps = []
        for stage in range(1, 5):
            for block in itertools.count():
                name = f'{body}.layer{stage}.{block}'
                if f'{name}.conv1.weight' not in self.weights:
                    break
                x = self.bottleneck(name, x, stride=2 if stage > 1 and block == 0 else 1)
            maps.append(x)
        return maps[1:]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Return P3 to P7."""
        levels: list[Tensor] = []
        above = None
        for number, feat in reversed(list(zip((2, 3, 4), self.backbone(x)))):
            inner = self.conv(f'backbone.fpn.fpn_inner{number}', feat)
            above = inner if above is None else inner + F.interpolate(above, inner.shape[-2:])
            levels.insert(0, self.conv(f'backbone.fpn.fpn_layer{number}', above))
        p6 = self.conv('backbone.fpn.top_blocks.p6', levels[-1], 2)
        return [*levels, p6, self.conv('backbone.fpn.top_blocks.p7', p6.relu(), 2)]

    def tower(self, branch: str, x: Tensor) -> Tensor:
        for i in (0, 3, 6, 9):
            name = f'rpn.head.{branch}_tower.{i + 1}'
            x = self.conv(f'rpn.head.{branch}_tower.{i}', x)
            x = F.group_norm(x, 32, self.weights[f'{name}.weight'], self.weights[f'{name}.bias']).relu()
        return x

    def embed(self, branch: str, feat: Tensor, stride: int) -> Tensor:
        spatial = self.conv(f'rpn.head.{branch}_spatial_embed_pred', feat)
        position = self.weights['rpn.head.position_scale.scale'] * locations(feat, stride) / 100
        return torch.cat([spatial + position, self.conv(f'rpn.head.{branch}_other_embed_pred', feat)], 1)

    def head(self, level: int, x: Tensor) -> list[Tensor]:
        """Return one image's class logits, boxes, centerness logits, embeddings, margins: ``(cells, channels)``."""
        cls_feat, box_feat, stride = self.tower('cls', x), self.tower('bbox', x), STRIDES[level]
        distances = self.conv('rpn.head.bbox_pred', box_feat) * self.weights[f'rpn.head.scales.{level}.scale']
        left_top, right_bottom = (distances.relu() * stride).split(2, 1)
        xy = locations(x, stride)
        log_margin = self.conv('rpn.head.proposal_margin_pred', box_feat / 32)
        log_margin[:, :2] *= self.weights[f'rpn.head.margin_scales.{level}.scale']
        maps = [
            self.conv('rpn.head.cls_logits', cls_feat),
            torch.cat([xy - left_top, xy + right_bottom], 1),
            self.conv('rpn.head.centerness', box_feat),
            self.embed('proposal', box_feat, stride),
            log_margin.exp(),
        ]
        return [each[0].flatten(1).t() for each in maps]


def locations(feat: Tensor, stride: int) -> Tensor:
    """Return ``(2, h, w)``, the x and y of cells' centres in input pixels."""
    y, x = (torch.arange(cells) * stride + stride // 2 for cells in feat.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing='xy')).float()


def candidates(maps: list[Tensor], img_shape: tuple[int, int]) -> list[Tensor]:
    """Pick one level's scores, labels, boxes, embeddings and margins, at most 1000 of each."""
    logits, bboxes, centerness, embeds, margins = maps
    probs = logits.sigmoid()
    cells, labels = (probs > 0.05).nonzero(as_tuple=True)
    scores, order = (probs * centerness.sigmoid())[cells, labels].topk(min(1000, len(cells)))
    cells, labels = cells[order], labels[order]
    last = torch.tensor(img_shape[::-1] * 2) - 1
    return [scores, labels, bboxes[cells].clamp(min=0).minimum(last), embeds[cells], margins[cells]]


def suppress(scores: Tensor, labels: Tensor, bboxes: Tensor) -> list[int]:
    """Return what class-wise NMS leaves, the best 100; sizes are counted with + 1."""
    areas = (bboxes[:, 2:] - bboxes[:, :2] + 1).prod(1)
    alive, kept = torch.ones(len(scores), dtype=torch.bool), []
    for i in scores.argsort(descending=True).tolist():
        if len(kept) == 100:
            break
        if not alive[i]:
            continue
        kept.append(i)
        inner = (bboxes[:, 2:].minimum(bboxes[i, 2:]) - bboxes[:, :2].maximum(bboxes[i, :2]) + 1).clamp(min=0).prod(1)
        alive &= (labels != labels[i]) | (inner / (areas + areas[i] - inner) <= 0.6)
    return kept


def segment(
    pixel_embed: Tensor,
    bbox: Tensor,
    embed: Tensor,
    margin: Tensor,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
) -> Tensor:
    """Return one detection's mask, bool ``ori_shape``; ``pixel_embed`` is on the grid of stride 4."""
    log_prob = -(margin[:, None, None] * (pixel_embed - embed[:, None, None]) ** 2).sum(0)
    x1, y1, x2, y2 = (bbox / MASK_STRIDE).int().tolist()
    inside = torch.zeros_like(log_prob, dtype=torch.bool)
    inside[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = True
    log_prob = log_prob.where(inside, torch.tensor(OUTSIDE))
    size = [math.ceil(n * MASK_STRIDE * ori / img) for n, ori, img in zip(log_prob.shape, ori_shape, img_shape)]
    resized = F.interpolate(log_prob[None, None], size, mode='bilinear', align_corners=False)[0, 0]
    return resized[: ori_shape[0], : ori_shape[1]] > math.log(0.53)


@torch.no_grad()
def detect(weights: dict[str, Tensor], image: Tensor, ori_shape: tuple[int, int]) -> dict[str, Tensor]:
    """Detect and segment as the authors do.

    Args:
        weights: With the authors' names.
        image: ``(3, h, w)``, BGR from 0 to 255, resized already.
        ori_shape: ``(h, w)`` of the image before.

    Returns:
        The best first: ``scores`` and ``labels`` from 0 ``(N,)``, ``bboxes`` ``(N, 4)`` and ``masks``
        ``(N, *ori_shape)``, both in original pixels.
    """
    img_shape = tuple(image.shape[1:])
    padding = [-n % PADDED_TO for n in img_shape]
    x = F.pad(image.float() - torch.tensor(MEAN)[:, None, None], (0, padding[1], 0, padding[0]))[None]
    network = AuthorsNetwork(weights)
    levels = network.pyramid(x)
    found = [candidates(network.head(level, feat), img_shape) for level, feat in enumerate(levels)]
    scores, labels, bboxes, embeds, margins = (torch.cat(parts) for parts in zip(*found))
    kept = suppress(scores, labels, bboxes)
    pixel_embed = network.embed('pixel', network.tower('mask', levels[0]), STRIDES[0])
    pixel_embed = F.interpolate(pixel_embed, scale_factor=2, mode='bilinear', align_corners=False)[0]
    masks = [segment(pixel_embed, bboxes[i], embeds[i], margins[i], img_shape, ori_shape) for i in kept]
    back = torch.tensor([ori / img for ori, img in zip(ori_shape, img_shape)]).flip(0).repeat(2)
    return dict(scores=scores[kept], labels=labels[kept], bboxes=bboxes[kept] * back, masks=torch.stack(masks))
