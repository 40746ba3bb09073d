"""What a file gives for the masks of detections: bitmaps, or the grid that somebody else finishes them from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mmengine.structures import InstanceData
from torch import Tensor, nn

from embedmask_mmdet.deployment.grid import MaskGrid, find_crops, to_xyxy
from embedmask_mmdet.deployment.masks import MaskStage


class ImageMasks(nn.Module):
    """Masks in the image.

    Args:
        stage: Of the detector.

    Attributes:
        axes: Names of the outputs, and of their axes whose size differs.
        metadata: What the file says about them.
    """

    axes: ClassVar[Mapping[str, dict[int, str]]] = {'masks': {0: 'detections', 1: 'height', 2: 'width'}}

    def __init__(self, stage: MaskStage) -> None:
        super().__init__()
        self.stage = stage
        self.metadata = dict(masks='image')

    def forward(self, results: InstanceData, grid: MaskGrid) -> tuple[Tensor, ...]:
        """Make masks.

        Args:
            results: ``proposal_embed`` and ``proposal_margin`` ``(N, D)``, ``crop_bboxes`` ``(N, 4)`` in input pixels.
            grid: Of the image.

        Returns:
            bool ``(N, H, W)``.
        """
        return (self.stage.compute_bitmaps(results, find_crops(results.crop_bboxes, grid), grid),)


class GridMasks(nn.Module):
    """Values on the cells that each mask depends on. The mask is where they are above a threshold, once resized.

    Args:
        stage: Of the detector.

    Attributes:
        axes: Names of the outputs, and of their axes whose size differs.
        metadata: What the file says about them.
    """

    axes: ClassVar[Mapping[str, dict[int, str]]] = {
        'crops': {0: 'detections'},
        'grid_crops': {0: 'detections'},
        'values': {0: 'cells'},
        'grid_size': {},
        'resized_size': {},
    }

    def __init__(self, stage: MaskStage) -> None:
        super().__init__()
        self.stage = stage
        self.metadata = dict(masks='grid', threshold=repr(stage.threshold))

    def forward(self, results: InstanceData, grid: MaskGrid) -> tuple[Tensor, ...]:
        """Compute values.

        Args:
            results: As in :class:`ImageMasks`.
            grid: Of the image.

        Returns:
            Pixels that a mask can have, int64 ``(N, 4)``: ``x1, y1, x2, y2``, right and bottom exclusive; the cells
            that they lie between, alike; the values of these cells, float32, of one detection after the other, row by
            row; height and width of the complete grid in cells, int64 ``(2,)``; the same after its resize, in pixels.
        """
        crops = find_crops(results.crop_bboxes, grid)
        values = self.stage.compute_values(results, crops, grid)
        return to_xyxy(crops.pixels), to_xyxy(crops.cells), values, grid.grid_size, grid.resized_size
