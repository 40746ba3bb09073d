"""A second non-maximum suppression, after other refinements changed boxes or scores."""

from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from mmdet.registry import TASK_UTILS
from mmdet.utils import ConfigType
from mmengine.structures import InstanceData

from embedmask_mmdet.models.refine.pixels import PixelGrid


def check_nms(nms: ConfigType) -> None:
    """Run an NMS on one box, so that a mistake in its config shows when the model is built.

    Args:
        nms: Config as ``mmcv.ops.batched_nms`` takes it.

    Raises:
        ValueError: If mmcv cannot run it.
    """
    try:
        batched_nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), torch.zeros(1), nms)
    except (AssertionError, NameError, TypeError) as error:
        raise ValueError(
            f"nms of EmbedMaskNMS must be a config of mmcv's nms or soft_nms. {dict(nms)} fails with {error!r}"
        ) from error


@TASK_UTILS.register_module()
class EmbedMaskNMS:
    """Remove duplicates, or lower their scores with ``soft_nms``.

    Args:
        nms: Config as ``mmcv.ops.batched_nms`` takes it.

    Raises:
        ValueError: If mmcv cannot run it.
    """

    def __init__(self, nms: ConfigType) -> None:
        check_nms(nms)
        self.nms = nms

    def __call__(self, results: InstanceData, pixels: PixelGrid) -> InstanceData:
        """Refine the detections of an image.

        Args:
            results: ``bboxes`` ``(N, 4)``, ``scores`` and ``labels`` ``(N,)``.
            pixels: Not used.

        Returns:
            The remaining detections, best first, with the scores of the NMS.
        """
        dets, kept = batched_nms(results.bboxes, results.scores, results.labels, self.nms)
        results = results[kept]
        results.scores = dets[:, 4]
        return results
