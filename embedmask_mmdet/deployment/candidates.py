"""The detections of an image, as the box head selects them."""

from __future__ import annotations

import torch
from mmdet.models.task_modules import DistancePointBBoxCoder
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

from embedmask_mmdet.deployment.suppression import BatchedNMS
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMaskBBoxHead, EmbedMaskClassVotes
from embedmask_mmdet.models.proposals import ProposalMaps


def take_best(scores: Tensor, max_num: int) -> tuple[Tensor, Tensor]:
    """Return the best scores and their indices, at most `max_num`; all if that is not above 0."""
    count = shape_as_tensor(scores)[0]
    if max_num > 0:
        count = torch.minimum(count, torch.tensor(max_num))
    return scores.topk(count)


class Candidates(nn.Module):
    """Select the detections of an image from the maps of the box head.

    Args:
        bbox_head: Of the detector.

    Raises:
        InputError: If its box coder, its NMS or its vote cannot be exported.
    """

    def __init__(self, bbox_head: EmbedMaskBBoxHead) -> None:
        super().__init__()
        if type(bbox_head.bbox_coder) is not DistancePointBBoxCoder:
            raise InputError(
                f'the box coder {type(bbox_head.bbox_coder).__name__} cannot be exported. Use DistancePointBBoxCoder.'
            )
        if bbox_head.vote and type(bbox_head.vote) is not EmbedMaskClassVotes:
            vote = type(bbox_head.vote).__name__
            raise InputError(f'the vote {vote} in model.test_cfg cannot be exported. Use EmbedMaskClassVotes.')
        self.bbox_head = bbox_head
        cfg = bbox_head.test_cfg
        # An ONNX graph holds the logit, as a float32.
        self.min_logit = torch.tensor(cfg.get('score_thr', 0), dtype=torch.float32).logit().item()
        self.nms_pre = cfg.get('nms_pre', -1)
        self.min_bbox_size = cfg.get('min_bbox_size', -1)
        self.max_per_img = cfg.max_per_img
        self.nms = BatchedNMS(cfg.nms, 'model.test_cfg.nms')

    def forward(self, proposals: ProposalMaps, img_shape: Tensor) -> InstanceData:
        """Select detections.

        Args:
            proposals: Of one image.
            img_shape: int64 ``(2,)``, height and width in input pixels.

        Returns:
            What ``EmbedMaskBBoxHead.predict_by_feat`` returns for an image.
        """
        mlvl_points = self.bbox_head._mlvl_points(proposals.cls_scores)
        levels = [
            self._pick_level([level_map[0].flatten(1) for level_map in maps], points, img_shape)
            for maps, points in zip(zip(*proposals), mlvl_points)
        ]
        candidates = InstanceData.cat(levels)
        results = candidates
        if self.min_bbox_size >= 0:
            sides = results.bboxes[:, 2:] - results.bboxes[:, :2]
            results = results[(sides > self.min_bbox_size).all(1).nonzero()[:, 0]]
        results = self.nms(results)[: self.max_per_img]
        return self.bbox_head.vote(results, candidates) if self.bbox_head.vote else results

    def _pick_level(self, maps: list[Tensor], points: Tensor, img_shape: Tensor) -> InstanceData:
        cls_score, bbox_pred, centerness, embed, margin = maps
        labels, cells = (cls_score > self.min_logit).nonzero().unbind(1)
        scores = cls_score[labels, cells].sigmoid() * centerness[0, cells].sigmoid()
        scores, order = take_best(scores, self.nms_pre)
        labels, cells = labels[order], cells[order]
        return InstanceData(
            bboxes=self._decode(points[cells], bbox_pred[:, cells].t(), img_shape),
            scores=scores,
            labels=labels,
            points=points[cells],
            proposal_embed=embed[:, cells].t(),
            proposal_margin=margin[:, cells].t(),
        )

    def _decode(self, points: Tensor, distances: Tensor, img_shape: Tensor) -> Tensor:
        bboxes = torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)
        if not self.bbox_head.bbox_coder.clip_border:
            return bboxes
        return torch.minimum(bboxes.clamp(min=0), img_shape.flip(0).repeat(2).to(bboxes))
