"""Boxes that follow the masks."""

from __future__ import annotations

import torch
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData

from embedmask_mmdet.models.refine.pixels import PixelGrid
from embedmask_mmdet.structures import mask_bboxes


@TASK_UTILS.register_module()
class EmbedMaskBoxesFromMasks:
    """Move boxes towards the boxes around their masks.

    Args:
        weight: How far boxes move, from 0 to 1.

    Raises:
        ValueError: If ``weight`` is not from 0 to 1.
    """

    def __init__(self, weight: float = 1.0) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f'weight must be from 0 to 1, got {weight}')
        self.weight = weight

    def __call__(self, results: InstanceData, pixels: PixelGrid) -> InstanceData:
        """Refine the detections of an image.

        Args:
            results: ``masks``, and ``bboxes`` ``(N, 4)`` in pixels of the masks.
            pixels: Not used.

        Returns:
            The same detections with other ``bboxes``; where a mask is empty, the box stays.
        """
        bboxes = mask_bboxes(results.masks).to(results.bboxes)
        is_empty = (bboxes[:, 2:] <= bboxes[:, :2]).any(dim=1, keepdim=True)
        results.bboxes = torch.where(is_empty, results.bboxes, results.bboxes.lerp(bboxes, self.weight))
        return results
