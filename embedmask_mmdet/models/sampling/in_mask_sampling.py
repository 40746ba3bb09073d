"""The paper's sampling: a location must lie in the mask of its instance, and one stands for each mask."""

from __future__ import annotations

from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.models.sampling.box_sampling import EmbedMaskBoxSampling
from embedmask_mmdet.targets import gt_masks, inside_masks


@TASK_UTILS.register_module()
class EmbedMaskInMaskSampling(EmbedMaskBoxSampling):
    """Let only locations inside an instance's mask learn from it (paper, section 3.4).

    Args:
        num_mask_locations: Locations per instance in the mask loss, those with the best boxes first.
    """

    def __init__(self, num_mask_locations: int = 1) -> None:
        super().__init__(num_mask_locations)

    def find_allowed(self, points: Tensor, gt_instances: InstanceData) -> Tensor:
        """Find the locations inside each instance's mask.

        Args:
            points: ``(P, 2)`` in input pixels.
            gt_instances: The ``N`` instances of an image, with ``masks``.

        Returns:
            Bool tensor ``(P, N)``.

        Raises:
            ValueError: If the instances have no masks.
        """
        return inside_masks(gt_masks(gt_instances), points)
