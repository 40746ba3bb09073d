"""The refinements of ``test_cfg.refine`` for a graph, each a part of its own, in the order of the config."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet import ops
from embedmask_mmdet.deployment.grid import MaskGrid, find_crops
from embedmask_mmdet.deployment.masks import MaskStage
from embedmask_mmdet.deployment.operators import RoiAlign
from embedmask_mmdet.deployment.suppression import BatchedNMS
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMaskBoxesFromMasks, EmbedMaskCertainty, EmbedMaskNMS
from embedmask_mmdet.models.refine.certainty import POINTS

Refinement = Callable[[InstanceData, MaskGrid], InstanceData]


def find_extent(is_on: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first True of each row of ``(N, L)`` and the index after the last; both 0 where there is none."""
    index = torch.arange(is_on.shape[1])
    end = torch.where(is_on, index + 1, torch.zeros_like(index)).amax(1)
    start = torch.where(is_on, index, end[:, None]).amin(1)
    return start, end


class Certainty:
    """Multiply each score by the mean probability inside the mask, as ``EmbedMaskCertainty``.

    Args:
        refinement: Of the detector.
        stage: Of the detector.
    """

    def __init__(self, refinement: EmbedMaskCertainty, stage: MaskStage) -> None:
        pass

    def __call__(self, results: InstanceData, grid: MaskGrid) -> InstanceData:
        """Lower the scores of an image's detections."""
        pixels = grid.pixels
        points = RoiAlign.apply(pixels.pixel_embed[None], results.crop_bboxes, POINTS, 1 / pixels.stride)
        prob = ops.point_log_prob(points, results.proposal_embed, results.proposal_margin).exp()
        inside = (prob > pixels.mask_thr).float()
        certainties = (prob * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        results.scores = results.scores * certainties
        return results


class BoxesFromMasks:
    """Move boxes towards the boxes around their masks, as ``EmbedMaskBoxesFromMasks``.

    Args:
        refinement: Of the detector.
        stage: Of the detector.
    """

    def __init__(self, refinement: EmbedMaskBoxesFromMasks, stage: MaskStage) -> None:
        self.weight = refinement.weight
        self.stage = stage

    def __call__(self, results: InstanceData, grid: MaskGrid) -> InstanceData:
        """Move the boxes of an image's detections."""
        rows, columns = self.stage.find_extents(results, find_crops(results.crop_bboxes, grid), grid)
        (x1, x2), (y1, y2) = find_extent(columns), find_extent(rows)
        bboxes = torch.stack([x1, y1, x2, y2], dim=1).float()
        is_empty = (bboxes[:, 2:] <= bboxes[:, :2]).any(dim=1, keepdim=True)
        results.bboxes = torch.where(is_empty, results.bboxes, results.bboxes.lerp(bboxes, self.weight))
        return results


class Suppression:
    """Suppress duplicates, as ``EmbedMaskNMS``.

    Args:
        refinement: Of the detector.
        stage: Of the detector.

    Raises:
        InputError: If its NMS cannot be exported.
    """

    def __init__(self, refinement: EmbedMaskNMS, stage: MaskStage) -> None:
        self.nms = BatchedNMS(refinement.nms, 'EmbedMaskNMS')

    def __call__(self, results: InstanceData, grid: MaskGrid) -> InstanceData:
        """Select among an image's detections."""
        return self.nms(results)


EXPORTABLE: dict[type, Callable[..., Refinement]] = {
    EmbedMaskBoxesFromMasks: BoxesFromMasks,
    EmbedMaskCertainty: Certainty,
    EmbedMaskNMS: Suppression,
}


def make_refinement(refinement: object, stage: MaskStage) -> Refinement:
    """Make the part of a graph that does what a refinement does.

    Args:
        refinement: Of the detector.
        stage: Of the detector.

    Raises:
        InputError: If it cannot be exported.
    """
    maker = EXPORTABLE.get(type(refinement))
    if maker is None:
        names = ', '.join(sorted(part.__name__ for part in EXPORTABLE))
        raise InputError(
            f'the refinement {type(refinement).__name__} cannot be exported. Remove it from test_cfg.refine; these can '
            f'be exported: {names}.'
        )
    return maker(refinement, stage)
