"""Test-time augmentation with masks, which MMDetection's own refuses."""

from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.structures import InstanceData
from torch import Tensor

FLIPPED_DIMS = {'horizontal': (2,), 'vertical': (1,), 'diagonal': (1, 2)}


def flip_back(results: InstanceData, img_meta: dict) -> InstanceData:
    """Bring one view's detections back to the image that was not flipped.

    Args:
        results: ``bboxes`` and ``masks``, in original pixels.
        img_meta: ``ori_shape``, ``flip`` and ``flip_direction`` of the view.

    Returns:
        New results, masks as bool ``(N, h, w)``.
    """
    bboxes, masks = results.bboxes, results.masks
    masks = masks if isinstance(masks, Tensor) else masks.to_tensor().to(bboxes.device)
    if img_meta['flip']:
        bboxes = bbox_flip(bboxes, img_meta['ori_shape'], img_meta['flip_direction'])
        masks = masks.flip(FLIPPED_DIMS[img_meta['flip_direction']])
    return InstanceData(bboxes=bboxes, masks=masks, scores=results.scores, labels=results.labels)


@MODELS.register_module()
class EmbedMaskTTAModel(DetTTAModel):
    """Merges the detections of several views of an image by class-wise NMS; each keeps the mask of its own view.

    Args:
        tta_cfg: ``nms`` and ``max_per_img``.
        kwargs: What ``DetTTAModel`` takes, the detector as ``module``.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        results = InstanceData.cat([flip_back(sample.pred_instances, sample.metainfo) for sample in data_samples])
        if len(results):
            dets, keep = batched_nms(results.bboxes, results.scores, results.labels, self.tta_cfg['nms'])
            results = results[keep]
            results.scores = dets[:, -1]
        merged = data_samples[0]
        merged.pred_instances = results[torch.arange(min(len(results), self.tta_cfg['max_per_img']))]
        return merged
