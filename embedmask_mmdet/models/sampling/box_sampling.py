"""The sampling of EmbedMask plus: FCOS's own locations, and several of them for each mask."""

from __future__ import annotations

from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.targets import best_candidates


@TASK_UTILS.register_module()
class EmbedMaskBoxSampling:
    """Let locations learn by FCOS's rule alone (arXiv 1904.01355, section 3.1), inside or outside of the mask.

    Args:
        num_mask_locations: Locations per instance in the mask loss, those with the best boxes first.

    Raises:
        ValueError: If ``num_mask_locations`` is below 1.
    """

    def __init__(self, num_mask_locations: int = 4) -> None:
        if num_mask_locations < 1:
            raise ValueError(f'num_mask_locations must be at least 1, got {num_mask_locations}')
        self.num_mask_locations = num_mask_locations

    def find_allowed(self, points: Tensor, gt_instances: InstanceData) -> Tensor | None:
        """Find the locations that may learn from each instance, in addition to FCOS's rule.

        Args:
            points: ``(P, 2)`` in input pixels.
            gt_instances: The ``N`` instances of an image.

        Returns:
            Bool tensor ``(P, N)``, or None if there is no further condition.
        """
        return None

    def pick_for_masks(self, gt_inds: Tensor, ious: Tensor, num_gts: int) -> Tensor:
        """Pick the positives that stand for their instances in the mask loss.

        Args:
            gt_inds: Int64 ``(K,)``, the instance of each positive.
            ious: ``(K,)``, IoU of its predicted box with the ground truth.
            num_gts: Number of instances.

        Returns:
            Int64 tensor: indices of positives, by instance.
        """
        return best_candidates(gt_inds, ious, num_gts, self.num_mask_locations)
