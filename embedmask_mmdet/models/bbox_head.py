"""The box head: FCOS that also predicts an embedding and a margin for the instance at each location."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from mmcv.cnn import Scale
from mmdet.models.dense_heads import FCOSHead
from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
from mmdet.models.utils import multi_apply
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import ConfigType, InstanceList, OptMultiConfig
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from embedmask_mmdet.models.embedding import EmbeddingConv
from embedmask_mmdet.models.frames import EmbedMaskLocationFrame
from embedmask_mmdet.models.frames.location_frame import NUM_SPATIAL
from embedmask_mmdet.models.proposals import (
    LocationTargets,
    ProposalMaps,
    flatten_levels,
    index_positives,
    make_targets,
    rank_candidates,
)
from embedmask_mmdet.targets import assign_locations

# What the authors set in FCOS.
AUTHORS_FCOS = dict(
    center_sampling=True,
    norm_on_bbox=True,
    centerness_on_reg=True,
    conv_bias=True,
    loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
)


@MODELS.register_module()
class EmbedMaskBBoxHead(FCOSHead):
    """Box head of `EmbedMask <https://arxiv.org/abs/1912.01954>`_; defaults are those of the authors' code.

    Shape legend: ``B`` images, ``C`` classes, ``D`` embedding channels, ``L`` levels of ``h, w`` cells, ``P`` cells
    of all levels, ``N`` instances or detections of an image.

    Args:
        num_classes: ``C``, without background.
        in_channels: Channels of the feature maps.
        embed_dim: ``D``, including the two spatial channels.
        initial_margin: Margin at the start of training. ``EmbedMask`` sets that of its frame.
        initial_distance: Distance from a location to all sides of its box at the start of training, in cells. At
            FCOS's 0, half of the outputs are negative, where they get no gradient, and boxes have no size.
        margin_reduce_factor: Divides the features before the convolution that predicts margins.
        sampling: Config of the rule that says which locations learn from an instance.
        strides: Input pixels per cell, by level.
        init_cfg: Initialization; by default that of the authors' code.
        kwargs: Other arguments of ``FCOSHead``, such as ``dcn_on_last_conv``; defaults are ``AUTHORS_FCOS``. In
            ``test_cfg``, ``vote`` is the config of what rates detections by the candidates that NMS removes.

    Raises:
        ValueError: If ``embed_dim``, ``initial_margin`` or ``initial_distance`` is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        embed_dim: int = 16,
        initial_margin: float = -math.log(0.5) / 2.0**2,
        initial_distance: float = 0.0,
        margin_reduce_factor: float = 32.0,
        sampling: ConfigType = dict(type='EmbedMaskInMaskSampling'),  # noqa: B006
        strides: tuple[int, ...] = (8, 16, 32, 64, 128),
        init_cfg: OptMultiConfig = None,
        **kwargs,
    ) -> None:
        if not initial_margin > 0:
            raise ValueError(f'initial_margin must be above 0, got {initial_margin}')
        if initial_distance < 0:
            raise ValueError(f'initial_distance must be at least 0, got {initial_distance}')
        self.embed_dim = embed_dim
        self.margin_reduce_factor = margin_reduce_factor
        super().__init__(
            num_classes,
            in_channels,
            strides=strides,
            init_cfg=init_cfg or self._default_init_cfg(initial_margin, initial_distance),
            **{**AUTHORS_FCOS, **kwargs},
        )
        self.sampling = TASK_UTILS.build(sampling)
        vote = (self.test_cfg or {}).get('vote')
        self.vote = TASK_UTILS.build(vote) if vote else None

    @staticmethod
    def _default_init_cfg(initial_margin: float, initial_distance: float) -> dict:
        return dict(
            type='Normal',
            layer=['Conv2d', 'EmbeddingConv'],
            std=0.01,
            override=[
                dict(type='Normal', name='conv_cls', std=0.01, bias_prob=0.01),
                dict(type='Normal', name='conv_reg', std=0.01, bias=initial_distance),
                dict(type='Normal', name='conv_margin', std=0.01, bias=math.log(initial_margin)),
            ],
        )

    def _init_layers(self) -> None:
        super()._init_layers()
        self.conv_embed = EmbeddingConv(self.feat_channels, self.embed_dim)
        self.conv_margin = nn.Conv2d(self.feat_channels, self.embed_dim, 3, padding=1)
        self.margin_scales = nn.ModuleList(Scale(1.0) for _ in self.strides)

    def forward(self, x: Iterable[Tensor], frame: EmbedMaskLocationFrame) -> ProposalMaps:
        """Predict classes, boxes, centerness, embeddings and margins at each location.

        Args:
            x: Feature maps ``L x (B, in_channels, h, w)`` in any iterable.
            frame: Frame of the spatial embeddings.

        Returns:
            Maps of each level: class logits ``(B, C, h, w)``; box distances ``(B, 4, h, w)``, in cells in training
            mode and in input pixels in evaluation mode; centerness logits ``(B, 1, h, w)``; embeddings and margins
            ``(B, D, h, w)``, float32.
        """
        x = tuple(x)
        positions = [frame.embed_cells(level.shape[-2:], stride) for level, stride in zip(x, self.strides)]
        return ProposalMaps(
            *multi_apply(self.forward_single, x, self.scales, self.margin_scales, self.strides, positions)
        )

    def forward_single(
        self, x: Tensor, scale: Scale, margin_scale: Scale, stride: int, position: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Predict a map of each kind, see :meth:`forward`, for one level ``(B, in_channels, h, w)``."""
        cls_score, bbox_pred, cls_feat, reg_feat = AnchorFreeHead.forward_single(self, x)
        centerness = self.conv_centerness(reg_feat if self.centerness_on_reg else cls_feat)
        distances = self._scale_distances(scale(bbox_pred).float(), stride)
        proposal_embed = self.conv_embed(reg_feat, position)
        return cls_score, distances, centerness, proposal_embed, self._predict_margin(reg_feat, margin_scale)

    def _scale_distances(self, bbox_pred: Tensor, stride: int) -> Tensor:
        if not self.norm_on_bbox:
            return bbox_pred.exp()
        cells = bbox_pred.clamp(min=0)
        return cells if self.training else cells * stride

    def _predict_margin(self, reg_feat: Tensor, margin_scale: Scale) -> Tensor:
        log_margin = self.conv_margin(reg_feat / self.margin_reduce_factor).float()
        spatial, other = log_margin.split([NUM_SPATIAL, self.embed_dim - NUM_SPATIAL], dim=1)
        return torch.cat([margin_scale(spatial), other], dim=1).exp()

    def assign(self, proposals: ProposalMaps, batch_gt_instances: InstanceList) -> list[LocationTargets]:
        """Assign the locations of each image to its instances.

        Args:
            proposals: From :meth:`forward`; only their sizes count.
            batch_gt_instances: ``bboxes`` in input pixels, ``labels`` and ``masks`` of each image.

        Returns:
            Targets of each image.

        Raises:
            ValueError: If ``sampling`` needs masks and there are none.
        """
        mlvl_points = self._mlvl_points(proposals.bbox_preds)
        radius = self.center_sample_radius if self.center_sampling else math.inf
        radii = [level.new_full((len(level),), stride * radius) for level, stride in zip(mlvl_points, self.strides)]
        ranges = [level.new_tensor(sides).expand_as(level) for level, sides in zip(mlvl_points, self.regress_ranges)]
        points, radii, ranges = torch.cat(mlvl_points), torch.cat(radii), torch.cat(ranges)
        return [self._assign_single(gt_instances, points, radii, ranges) for gt_instances in batch_gt_instances]

    def _assign_single(
        self, gt_instances: InstanceData, points: Tensor, radii: Tensor, regress_ranges: Tensor
    ) -> LocationTargets:
        allowed = self.sampling.find_allowed(points, gt_instances)
        gt_inds = assign_locations(points, radii, regress_ranges, gt_instances.bboxes, allowed)
        return make_targets(gt_inds, points, gt_instances, self.num_classes)

    def loss_by_feat(self, proposals: ProposalMaps, targets: list[LocationTargets]) -> dict[str, Tensor]:
        """Compute FCOS's three losses.

        Args:
            proposals: From :meth:`forward` in training mode.
            targets: From :meth:`assign`.

        Returns:
            ``loss_cls``, ``loss_bbox`` and ``loss_centerness``.
        """
        # mmcv's focal loss on GPUs has no bfloat16, and rounds in float16.
        cls_scores = [cls_score.float() for cls_score in proposals.cls_scores]
        return super().loss_by_feat(cls_scores, *proposals[1:3], batch_gt_instances=targets, batch_img_metas=[])

    def _get_targets_single(self, targets: LocationTargets, *_, **__) -> tuple[Tensor, Tensor]:
        # FCOS calls this for each image, to split by level what it returns.
        return targets.labels, targets.bbox_targets

    def pick_positives(
        self, proposals: ProposalMaps, targets: list[LocationTargets], batch_gt_instances: InstanceList
    ) -> InstanceData:
        """Pick the locations that stand for each instance in the mask loss.

        Args:
            proposals: From :meth:`forward` in training mode.
            targets: From :meth:`assign`.
            batch_gt_instances: ``bboxes`` of each image in input pixels.

        Returns:
            ``N`` locations of the batch, by image and instance: what :func:`index_positives` returns, and ``points``
            ``(N, 2)`` and predicted ``bboxes`` ``(N, 4)`` in input pixels, without gradients; ``ious`` ``(N,)`` of both
            boxes; ``proposal_embed`` and ``proposal_margin`` ``(N, D)``, with gradients.
        """
        positives = index_positives(targets, batch_gt_instances)
        bboxes = self._decode(proposals.bbox_preds).detach()
        positives.bboxes = bboxes[positives.img_inds, positives.locations]
        # The authors' code counts sides of boxes with + 1.
        edge = bboxes.new_tensor([0, 0, 1, 1])
        positives.ious = bbox_overlaps(positives.bboxes + edge, positives.gt_bboxes + edge, is_aligned=True)
        num_gts = sum(len(gt_instances) for gt_instances in batch_gt_instances)
        positives = positives[self.sampling.pick_for_masks(positives.batch_gt_inds, positives.ious, num_gts)]
        imgs, locations = positives.img_inds, positives.locations
        positives.points = torch.cat(self._mlvl_points(proposals.bbox_preds))[locations]
        positives.proposal_embed = flatten_levels(proposals.proposal_embeds)[imgs, locations]
        positives.proposal_margin = flatten_levels(proposals.proposal_margins)[imgs, locations]
        return positives

    def _decode(self, bbox_preds: list[Tensor]) -> Tensor:
        """Turn the distances of training mode into boxes in input pixels: ``L x (B, 4, h, w) -> (B, P, 4)``."""
        points = torch.cat(self._mlvl_points(bbox_preds))
        if self.norm_on_bbox:
            bbox_preds = [pred * stride for pred, stride in zip(bbox_preds, self.strides)]
        distances = flatten_levels(bbox_preds)
        return self.bbox_coder.decode(points.expand(len(distances), -1, -1), distances)

    def _mlvl_points(self, mlvl_maps: list[Tensor]) -> list[Tensor]:
        featmap_sizes = [level.shape[-2:] for level in mlvl_maps]
        return self.prior_generator.grid_priors(featmap_sizes, mlvl_maps[0].dtype, mlvl_maps[0].device)

    def predict_by_feat(
        self,
        proposals: ProposalMaps,
        batch_img_metas: list[dict],
        cfg: ConfigDict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> InstanceList:
        """Select the detections of each image.

        Args:
            proposals: From :meth:`forward` in evaluation mode.
            batch_img_metas: ``img_shape`` of each image, and ``scale_factor`` with ``rescale``.
            cfg: Replaces ``test_cfg``.
            rescale: Whether boxes are in original pixels instead of input pixels.
            with_nms: Whether duplicates are removed.

        Returns:
            For each image, best first: ``bboxes`` ``(N, 4)``, ``scores`` and ``labels`` ``(N,)``; the locations
            ``points`` ``(N, 2)`` in input pixels; ``proposal_embed`` and ``proposal_margin`` ``(N, D)``.
        """
        cfg = cfg or self.test_cfg
        mlvl_points = self._mlvl_points(proposals.bbox_preds)  # float32 under autocast too: points must not be rounded
        results_list = []
        for img, img_meta in enumerate(batch_img_metas):
            levels = [
                self._candidates_single([level_map[img].detach() for level_map in maps], points, img_meta, cfg)
                for maps, points in zip(zip(*proposals), mlvl_points)
            ]
            candidates = InstanceData.cat(levels)
            results = self._bbox_post_process(candidates, cfg, rescale, with_nms, img_meta)
            results_list.append(self.vote(results, candidates) if self.vote and with_nms else results)
        return results_list

    def _candidates_single(self, maps: list[Tensor], points: Tensor, img_meta: dict, cfg: ConfigDict) -> InstanceData:
        """Pick the candidates of one level in one image."""
        cls_score, bbox_pred, centerness, embed, margin = (level_map.flatten(1) for level_map in maps)
        scores, labels, cells = rank_candidates(
            cls_score, centerness[0], cfg.get('score_thr', 0), cfg.get('nms_pre', -1)
        )
        return InstanceData(
            bboxes=self.bbox_coder.decode(points[cells], bbox_pred[:, cells].t(), max_shape=img_meta['img_shape']),
            scores=scores,
            labels=labels,
            points=points[cells],
            proposal_embed=embed[:, cells].t(),
            proposal_margin=margin[:, cells].t(),
        )
