"""Test-time augmentation with masks, which MMDetection's own model refuses.

Shape legend: ``V`` views of an image, ``M`` detections of all views, ``K`` detections that are left of them, ``h, w``
original pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip, bbox_overlaps
from mmdet.structures.mask import encode_mask_results
from mmdet.utils import ConfigType
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional

from embedmask_mmdet import ops
from embedmask_mmdet.models.mask_head import EmbedMaskMaskHead
from embedmask_mmdet.structures import RLEMasks

FLIPPED_DIMS = {'horizontal': (1,), 'vertical': (0,), 'diagonal': (0, 1)}
NO_DETECTION = -1


def flip_boxes_back(view: DetDataSample) -> Tensor:
    """Bring the boxes of a view, ``(N, 4)`` in original pixels, back to the image that was not flipped."""
    bboxes = view.pred_instances.bboxes
    return bbox_flip(bboxes, view.ori_shape, view.flip_direction) if view.flip else bboxes


def collect_detections(views: list[DetDataSample]) -> InstanceData:
    """Collect the detections of all views in the coordinates of the image.

    Args:
        views: Results of an image.

    Returns:
        ``M`` detections: ``bboxes``, ``scores``, ``labels``; ``view_ids`` and ``instance_ids``, where they come from.
    """
    return InstanceData.cat(
        [
            InstanceData(
                bboxes=flip_boxes_back(view),
                scores=view.pred_instances.scores,
                labels=view.pred_instances.labels,
                view_ids=torch.full_like(view.pred_instances.labels, view_id),
                instance_ids=torch.arange(len(view.pred_instances), device=view.pred_instances.labels.device),
            )
            for view_id, view in enumerate(views)
        ]
    )


def match_views(kept: InstanceData, results: InstanceData, num_views: int, iou_threshold: float) -> Tensor:
    """Match each object with the detection in each view that has the same class and overlaps most.

    Args:
        kept: The ``K`` detections that NMS leaves.
        results: All ``M`` detections, from :func:`collect_detections`.
        num_views: ``V``.
        iou_threshold: Detections that overlap less are different objects.

    Returns:
        Int64 ``(K, V)``: index of a detection within its view, -1 where a view has none.
    """
    ious = bbox_overlaps(kept.bboxes, results.bboxes)
    ious[(kept.labels[:, None] != results.labels) | (ious < iou_threshold)] = -1
    matches = ious.new_full((len(kept), num_views), NO_DETECTION, dtype=torch.long)
    for view in range(num_views):
        members = (results.view_ids == view).nonzero()[:, 0]
        if len(members):
            best_iou, best = ious[:, members].max(dim=1)
            matches[:, view] = results.instance_ids[members[best]].where(best_iou >= 0, NO_DETECTION)
    # A box without area overlaps nothing, not even itself.
    matches[torch.arange(len(kept)), kept.view_ids] = kept.instance_ids
    return matches


def scores_by_view(views: list[DetDataSample], matches: Tensor) -> Tensor:
    """Look up the scores of detections.

    Args:
        views: Results of an image.
        matches: ``(K, V)``, see :func:`match_views`.

    Returns:
        ``(K, V)``, 0 where a view has no such detection.
    """
    # NO_DETECTION is the index of the last score.
    padded = [functional.pad(view.pred_instances.scores, (0, 1)) for view in views]
    return torch.stack([scores[ids] for scores, ids in zip(padded, matches.unbind(1))], dim=1)


def view_probs(mask_head: EmbedMaskMaskHead, view: DetDataSample, instance_ids: Tensor) -> Iterator[Tensor]:
    """Yield the probability maps ``(h, w)`` of some detections of a view, flipped back, one at a time."""
    results = view.pred_instances[instance_ids]
    log_probs = ops.instance_log_probs(
        view.pixel_embed,
        results.proposal_embed,
        results.proposal_margin,
        results.crop_bboxes,
        stride=mask_head.stride,
        img_shape=view.img_shape,
        ori_shape=view.ori_shape,
        mask_thr=mask_head.mask_thr,
        upscale=mask_head.mask_scale,
        resize_prob=mask_head.resize_prob,
    )
    for log_prob in log_probs:
        yield log_prob.exp().flip(FLIPPED_DIMS[view.flip_direction] if view.flip else ())


def stack_masks(masks: Iterator[Tensor], ori_shape: tuple[int, int]) -> Tensor:
    """Stack masks ``(h, w)``, of which there may be none, to bool ``(K, h, w)``."""
    masks = list(masks)
    return torch.stack(masks) if masks else torch.zeros(0, *ori_shape, dtype=torch.bool)


def encode_masks(masks: Iterator[Tensor], ori_shape: tuple[int, int]) -> RLEMasks:
    """Encode masks ``(h, w)`` one after the other."""
    return RLEMasks(encode_mask_results(mask.cpu().numpy() for mask in masks), ori_shape)


COLLECTORS = {'bitmap': stack_masks, 'rle': encode_masks}


@MODELS.register_module()
class EmbedMaskTTAModel(DetTTAModel):
    """Merge the detections of several views of an image: boxes by class-wise NMS, masks by their mean probability.

    The probability of a pixel is the mean over those views that found the object, weighted by score, each in original
    pixels and flipped back. The score is the geometric mean of the best view's and of the mean over all views, where
    views that did not find the object count as 0. So what all views see ranks above what one view invents.

    Args:
        module: Config of the detector, or a detector with ``test_cfg.keep_embed``.
        tta_cfg: ``nms`` and ``max_per_img``. The threshold of NMS also decides which detections are the same object.
        kwargs: Other arguments of ``DetTTAModel``.

    Raises:
        ValueError: If the detector does not keep its embeddings, or ``nms`` has no ``iou_threshold``.
    """

    def __init__(self, module: ConfigType | nn.Module, **kwargs) -> None:
        if isinstance(module, dict):
            module = ConfigDict(module, test_cfg=ConfigDict(module.get('test_cfg') or {}, keep_embed=True))
        super().__init__(module=module, **kwargs)
        if not self.module.mask_head.keep_embed:
            raise ValueError('EmbedMaskTTAModel merges embeddings: build its module with test_cfg.keep_embed=True')
        if 'iou_threshold' not in self.tta_cfg['nms']:
            raise ValueError(
                f'tta_cfg.nms needs iou_threshold, which also matches views; got {dict(self.tta_cfg["nms"])}'
            )

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        results = collect_detections(data_samples)
        kept = results
        if len(results):
            dets, keep = batched_nms(results.bboxes, results.scores, results.labels, self.tta_cfg['nms'])
            kept = results[keep]
            kept.scores = dets[:, -1]
        matches = match_views(kept, results, len(data_samples), self.tta_cfg['nms']['iou_threshold'])
        view_scores = scores_by_view(data_samples, matches)
        kept.scores = (kept.scores * view_scores.mean(dim=1)).sqrt()
        best = kept.scores.argsort(descending=True, stable=True)[: self.tta_cfg['max_per_img']]
        kept = kept[best]
        merged = data_samples[0].new()
        del merged.pixel_embed
        merged.pred_instances = InstanceData(
            bboxes=kept.bboxes,
            scores=kept.scores,
            labels=kept.labels,
            masks=self._merge_masks(data_samples, matches[best], view_scores[best]),
        )
        return merged

    def _merge_masks(self, views: list[DetDataSample], matches: Tensor, scores: Tensor) -> Tensor | RLEMasks:
        """Average what the views say about each object.

        Args:
            views: Results of an image.
            matches: ``(K, V)``, see :func:`match_views`.
            scores: ``(K, V)``, see :func:`scores_by_view`.
        """
        mask_head = self.module.mask_head
        streams = [view_probs(mask_head, view, ids[ids != NO_DETECTION]) for view, ids in zip(views, matches.unbind(1))]
        present = matches != NO_DETECTION
        # A score may be 0 too.
        weights = scores.clamp(min=torch.finfo(scores.dtype).tiny) * present
        weights = weights / weights.sum(dim=1, keepdim=True)
        masks = (
            sum(weight * next(stream) for stream, weight, is_there in zip(streams, *row) if is_there)
            > mask_head.mask_thr
            for row in zip(weights, present)
        )
        return COLLECTORS[mask_head.mask_format](masks, views[0].ori_shape)
