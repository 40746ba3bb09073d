"""A step of the pipeline that loads masks of crowded images in little time and memory."""

from __future__ import annotations

from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import TRANSFORMS
from pycocotools import mask as mask_utils

from embedmask_mmdet.cropped_masks import CroppedMasks
from embedmask_mmdet.run_lengths import decode_crops


def encode(mask: list | dict, height: int, width: int) -> dict:
    """Change polygons or run lengths to compressed run lengths, as ``LoadAnnotations`` does before it decodes them."""
    if isinstance(mask, list):
        return mask_utils.merge(mask_utils.frPyObjects(mask, height, width))
    return mask_utils.frPyObjects(mask, height, width) if isinstance(mask['counts'], list) else mask


@TRANSFORMS.register_module()
class EmbedMaskLoadAnnotations(LoadAnnotations):
    """MMDetection's ``LoadAnnotations`` whose masks are not decoded to bitmaps of the complete image.

    ``gt_masks`` are :class:`CroppedMasks`, which equal ``BitmapMasks`` in everything but time and memory. With
    ``poly2mask=False``, and for run lengths that are not those of the image, the step does what ``LoadAnnotations``
    does. The arguments are the same.
    """

    def _load_masks(self, results: dict) -> None:
        if not self.poly2mask:
            super()._load_masks(results)
            return
        height, width = results['ori_shape']
        rles = [encode(mask, height, width) for mask in self._process_masks(results)]
        try:
            crops = decode_crops(rles, height, width)
        except ValueError:
            super()._load_masks(results)
        else:
            results['gt_masks'] = CroppedMasks.from_crops(crops, height, width)
