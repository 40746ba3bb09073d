"""Scores that also say how good the mask is."""

from __future__ import annotations

from mmcv.ops import roi_align
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional

from embedmask_mmdet import ops
from embedmask_mmdet.models.refine.pixels import PixelGrid

POINTS = (14, 14)


def mask_certainties(results: InstanceData, pixels: PixelGrid) -> Tensor:
    """Compute the mean probability inside each mask, from a grid of points in the box that cuts the mask.

    Args:
        results: ``proposal_embed`` and ``proposal_margin`` ``(N, D)``, ``crop_bboxes`` ``(N, 4)`` in input pixels.
        pixels: Of the image.

    Returns:
        ``(N,)``, 0 where no point is inside.
    """
    rois = functional.pad(results.crop_bboxes, (1, 0))
    # mmcv's operator reads memory as if it were contiguous.
    points = roi_align(pixels.pixel_embed[None].contiguous(), rois, POINTS, 1 / pixels.stride, 1)
    prob = ops.point_log_prob(points, results.proposal_embed, results.proposal_margin).exp()
    inside = prob > pixels.mask_thr
    return (prob * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)


@TASK_UTILS.register_module()
class EmbedMaskCertainty:
    """Multiply each score by the mean probability inside the mask.

    Class and centerness do not say whether the mask is any good. docs/accuracy.md shows what this gains.
    """

    def __call__(self, results: InstanceData, pixels: PixelGrid) -> InstanceData:
        """Refine the detections of an image.

        Args:
            results: See :func:`mask_certainties`; with ``scores`` ``(N,)``.
            pixels: Of the image.

        Returns:
            The same detections with lower ``scores``.
        """
        results.scores = results.scores * mask_certainties(results, pixels)
        return results
