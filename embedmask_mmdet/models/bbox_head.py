"""FCOS that also predicts, at each location, an embedding of the instance and the margin around it."""

from __future__ import annotations

import math

import torch
from mmcv.cnn import Scale
from mmdet.models.dense_heads import FCOSHead
from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
from mmdet.models.utils import multi_apply
from mmdet.registry import MODELS
from mmdet.utils import ConfigType, InstanceList, OptInstanceList, OptMultiConfig
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional

from embedmask_mmdet.models.embedding import NUM_SPATIAL, EmbeddingConv, PositionEmbedding
from embedmask_mmdet.targets import (
    NO_INSTANCE,
    aligned_ious,
    assign_locations,
    best_candidates,
    gt_masks,
    inside_masks,
    keep_allowed,
)


def flatten_levels(mlvl_maps: list[Tensor]) -> Tensor:
    """Line up the cells of all levels: ``L x (B, C, h, w) -> (B, P, C)``."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in mlvl_maps], dim=1)


class BoxTowerHead(AnchorFreeHead):
    """Keeps the box tower's features of each level, which ``FCOSHead.forward_single`` computes but does not return.

    It stands behind ``FCOSHead`` in the order in which Python looks methods up, so that FCOS calls it unawares.
    """

    def forward_single(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the towers on one level, ``(B, C, h, w)``, as MMDetection does."""
        outs = super().forward_single(x)
        self.reg_feats.append(outs[-1])
        return outs


@MODELS.register_module()
class EmbedMaskBBoxHead(FCOSHead, BoxTowerHead):
    """Box head of `EmbedMask <https://arxiv.org/abs/1912.01954>`_ with the reference's values as defaults.

    Shape legend: ``B`` images, ``C`` classes, ``D`` embedding channels, ``L`` levels of ``h, w`` cells, ``P`` cells
    of all levels, ``N`` instances or detections of an image.

    Args:
        num_classes: ``C``, without background.
        in_channels: Channels of the feature maps.
        embed_dim: ``D``, of which the first two are spatial.
        embed_reduce_factor: What the box tower's features are divided by before the embedding's convolution.
        coord_scale: Input pixels that make one unit of spatial embedding.
        prior_margin: Distance between embeddings at which the initial margin gives the probability 0.5.
        fix_margin: Whether every margin keeps its initial value instead of being predicted.
        margin_reduce_factor: What the box tower's features are divided by before the margin's convolution.
        sample_in_mask: Whether a location must lie in an instance's mask to answer for it in the mask loss.
        detect_in_mask: Whether that also holds for classes, boxes and centerness, which else are trained as in FCOS.
        num_mask_locations: Locations of an instance that the mask loss looks at, those with the best boxes first.
        box_centers: Whether spatial embeddings are relative to the centre of the predicted box, not to the location.
        box_margins: Whether spatial margins are relative to the predicted box: at ``prior_margin`` units from its
            embedding there lies the box's side, whatever its size, and not ``prior_margin * coord_scale`` pixels.
        guide_boxes: Whether in training, where spatial embeddings or margins are relative to the predicted box, that is
            moved towards the ground truth by as much as it misses it, 1 - IoU: masks need not wait for boxes.
        initial_distance: Distance in cells from a location to all sides of its box at first, with ``norm_on_bbox`` and
            the default ``init_cfg``. FCOS's 0 leaves half of the outputs below 0, where they have no gradient, and
            boxes without an extent.
        strides: Input pixels a cell, by level. Feature maps finer than these are left to the mask head.
        center_sampling: As in ``FCOSHead``, like the following ones.
        norm_on_bbox: Whether distances are predicted in units of the stride.
        centerness_on_reg: Whether centerness is predicted from the box tower.
        conv_bias: Whether the towers' convolutions have biases.
        loss_bbox: Config of the regression loss.
        init_cfg: Initialization; by default the reference's.
        kwargs: Everything else that ``FCOSHead`` takes, ``dcn_on_last_conv`` among it.

    Raises:
        ValueError: If ``embed_dim``, ``coord_scale``, ``prior_margin``, ``num_mask_locations`` or ``initial_distance``
            cannot be.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        embed_dim: int = 16,
        embed_reduce_factor: float = 1.0,
        coord_scale: float = 100.0,
        prior_margin: float = 2.0,
        fix_margin: bool = False,
        margin_reduce_factor: float = 32.0,
        sample_in_mask: bool = True,
        detect_in_mask: bool = True,
        num_mask_locations: int = 1,
        box_centers: bool = False,
        box_margins: bool = False,
        guide_boxes: bool = False,
        initial_distance: float = 0.0,
        strides: tuple[int, ...] = (8, 16, 32, 64, 128),
        center_sampling: bool = True,
        norm_on_bbox: bool = True,
        centerness_on_reg: bool = True,
        conv_bias: bool | str = True,
        loss_bbox: ConfigType = dict(type='GIoULoss', loss_weight=1.0),  # noqa: B006
        init_cfg: OptMultiConfig = None,
        **kwargs,
    ) -> None:
        if not prior_margin > 0:
            raise ValueError(f'prior_margin must be above 0, got {prior_margin}')
        if num_mask_locations < 1:
            raise ValueError(f'num_mask_locations must be at least 1, got {num_mask_locations}')
        if initial_distance < 0:
            raise ValueError(f'initial_distance must be at least 0, got {initial_distance}')
        self.embed_dim = embed_dim
        self.embed_reduce_factor = embed_reduce_factor
        self.coord_scale = coord_scale
        self.prior_margin = prior_margin
        self.log_initial_margin = math.log(-math.log(0.5) / prior_margin**2)
        self.fix_margin = fix_margin
        self.margin_reduce_factor = margin_reduce_factor
        self.sample_in_mask = sample_in_mask
        self.detect_in_mask = detect_in_mask
        self.num_mask_locations = num_mask_locations
        self.box_centers = box_centers
        self.box_margins = box_margins
        self.guide_boxes = guide_boxes
        self.initial_distance = initial_distance
        self.reg_feats: list[Tensor] = []
        super().__init__(
            num_classes,
            in_channels,
            strides=strides,
            center_sampling=center_sampling,
            norm_on_bbox=norm_on_bbox,
            centerness_on_reg=centerness_on_reg,
            conv_bias=conv_bias,
            loss_bbox=loss_bbox,
            init_cfg=init_cfg or self._reference_init_cfg(),
            **kwargs,
        )

    def _reference_init_cfg(self) -> dict:
        overrides = [
            dict(type='Normal', name='conv_cls', std=0.01, bias_prob=0.01),
            dict(type='Normal', name='conv_reg', std=0.01, bias=self.initial_distance),
        ]
        if not self.fix_margin:
            overrides.append(dict(type='Normal', name='conv_margin', std=0.01, bias=self.log_initial_margin))
        return dict(type='Normal', layer=['Conv2d', 'EmbeddingConv'], std=0.01, override=overrides)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.position = PositionEmbedding(self.coord_scale)
        self.conv_embed = EmbeddingConv(self.feat_channels, self.embed_dim, self.embed_reduce_factor)
        if not self.fix_margin:
            self.conv_margin = nn.Conv2d(self.feat_channels, self.embed_dim, 3, padding=1)
            self.margin_scales = nn.ModuleList(Scale(1.0) for _ in self.strides)

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], ...]:
        """Predict classes, boxes, centerness, embeddings and margins on every level.

        Args:
            x: Feature maps ``L x (B, in_channels, h, w)``, behind any that are finer.

        Returns:
            Five lists of ``L`` maps: class logits ``(B, C, h, w)``; box distances ``(B, 4, h, w)``, in cells when
            training and else in input pixels; centerness logits ``(B, 1, h, w)``; proposal embeddings and proposal
            margins ``(B, D, h, w)``, both float32.
        """
        self.reg_feats.clear()
        cls_scores, bbox_preds, centernesses = super().forward(x[-len(self.strides) :])
        levels = range(len(self.strides))
        proposal_embeds, proposal_margins = multi_apply(self._embed_single, self.reg_feats, levels)
        self.reg_feats.clear()
        return cls_scores, bbox_preds, centernesses, proposal_embeds, proposal_margins

    def _embed_single(self, reg_feat: Tensor, level: int) -> tuple[Tensor, Tensor]:
        position = self.position(reg_feat.shape[-2:], self.strides[level])
        proposal_embed = self.conv_embed(reg_feat, position)
        if self.fix_margin:
            return proposal_embed, torch.full_like(proposal_embed, math.exp(self.log_initial_margin))
        log_margin = self.conv_margin(reg_feat / self.margin_reduce_factor).float()
        spatial, other = log_margin.split([NUM_SPATIAL, self.embed_dim - NUM_SPATIAL], dim=1)
        return proposal_embed, torch.cat([self.margin_scales[level](spatial), other], dim=1).exp()

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        centernesses: list[Tensor],
        proposal_embeds: list[Tensor],
        proposal_margins: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, Tensor]:
        """Compute FCOS's three losses, and keep what :meth:`get_positive_infos` needs.

        Args:
            cls_scores: From :meth:`forward`, like the following four.
            bbox_preds: In cells.
            centernesses: Logits.
            proposal_embeds: ``L x (B, D, h, w)``.
            proposal_margins: ``L x (B, D, h, w)``.
            batch_gt_instances: ``bboxes`` in input pixels, ``labels`` and ``masks`` of each image.
            batch_img_metas: Not used.
            batch_gt_instances_ignore: Not used.

        Returns:
            ``loss_cls``, ``loss_bbox`` and ``loss_centerness``.

        Raises:
            ValueError: If positives must lie in masks and there are none.
        """
        losses = super().loss_by_feat(
            cls_scores, bbox_preds, centernesses, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        self._raw_positive_infos.update(
            gt_bboxes=[gt_instances.bboxes for gt_instances in batch_gt_instances],
            points=torch.cat(self._mlvl_points(bbox_preds)),
            bboxes=self._decode_levels(bbox_preds).detach(),
            proposal_embed=flatten_levels(proposal_embeds),
            proposal_margin=flatten_levels(proposal_margins),
        )
        return losses

    def _decode_levels(self, bbox_preds: list[Tensor]) -> Tensor:
        """Turn distances in cells into boxes in input pixels: ``L x (B, 4, h, w) -> (B, P, 4)``."""
        points = torch.cat(self._mlvl_points(bbox_preds))
        if self.norm_on_bbox:
            bbox_preds = [pred * stride for pred, stride in zip(bbox_preds, self.strides)]
        distances = flatten_levels(bbox_preds)
        return self.bbox_coder.decode(points.expand(len(distances), -1, -1), distances)

    def _mlvl_points(self, mlvl_maps: list[Tensor]) -> list[Tensor]:
        featmap_sizes = [level.shape[-2:] for level in mlvl_maps]
        return self.prior_generator.grid_priors(featmap_sizes, mlvl_maps[0].dtype, mlvl_maps[0].device)

    def get_targets(self, points: list[Tensor], batch_gt_instances: InstanceList) -> tuple[list[Tensor], list[Tensor]]:
        """Assign locations to instances.

        Args:
            points: ``(x, y)`` in input pixels, ``L x (h * w, 2)``.
            batch_gt_instances: ``bboxes``, ``labels`` and ``masks`` of each image.

        Returns:
            Labels and box distances of each level, images one after another, as in ``FCOSHead``.
        """
        self._raw_positive_infos['matched_gts'] = []
        return super().get_targets(points, batch_gt_instances)

    def _get_targets_single(
        self, gt_instances: InstanceData, points: Tensor, regress_ranges: Tensor, num_points_per_lvl: list[int]
    ) -> tuple[Tensor, Tensor]:
        radius = self.center_sample_radius if self.center_sampling else math.inf
        radii = torch.cat([points.new_full((n,), s * radius) for n, s in zip(num_points_per_lvl, self.strides)])
        inside = inside_masks(gt_masks(gt_instances), points) if self.sample_in_mask else None
        allowed = inside if self.detect_in_mask else None
        matched_gt = assign_locations(points, radii, regress_ranges, gt_instances.bboxes, allowed)
        # Where the detector's rule is the weaker one, the mask loss uses fewer locations, never other ones.
        mask_gt = matched_gt if inside is None else keep_allowed(matched_gt, inside)
        self._raw_positive_infos['matched_gts'].append(mask_gt)

        labels = matched_gt.new_full(matched_gt.shape, self.num_classes)
        bbox_targets = points.new_zeros((len(points), 4))
        positive = matched_gt != NO_INSTANCE
        gt_inds = matched_gt[positive]
        labels[positive] = gt_instances.labels[gt_inds]
        bbox_targets[positive] = self.bbox_coder.encode(points[positive], gt_instances.bboxes[gt_inds])
        return labels, bbox_targets

    def get_positive_infos(self) -> InstanceList:
        """Choose the locations that stand for each instance in the mask loss, after :meth:`loss_by_feat`.

        Of an instance's positive locations they are the ``num_mask_locations`` ones whose predicted boxes overlap the
        ground truth most.

        Returns:
            For each image the chosen locations: ``gt_inds``, index of the ground truth, int64 ``(N,)``, ascending;
            ``proposal_embed`` and ``proposal_margin`` ``(N, D)``, with gradients.
        """
        infos = self._raw_positive_infos
        num_gts = [len(gt_bboxes) for gt_bboxes in infos['gt_bboxes']]
        gt_bboxes = torch.cat(infos['gt_bboxes'])
        first_gts = torch.tensor([0, *num_gts[:-1]], device=gt_bboxes.device).cumsum(0)
        matched_gts = torch.stack(infos['matched_gts'])
        imgs, locations = (matched_gts != NO_INSTANCE).nonzero(as_tuple=True)
        gt_inds = matched_gts[imgs, locations] + first_gts[imgs]
        ious = aligned_ious(infos['bboxes'][imgs, locations], gt_bboxes[gt_inds])
        best = best_candidates(gt_inds, ious, len(gt_bboxes), self.num_mask_locations)

        imgs, locations, gt_inds = imgs[best], locations[best], gt_inds[best]
        bboxes = infos['bboxes'][imgs, locations]
        proposal_embed, proposal_margin = self._relate_to_boxes(
            infos['proposal_embed'][imgs, locations],
            infos['proposal_margin'][imgs, locations],
            infos['points'][locations],
            torch.lerp(gt_bboxes[gt_inds], bboxes, ious[best, None]) if self.guide_boxes else bboxes,
        )
        chosen = InstanceData(
            gt_inds=gt_inds - first_gts[imgs], proposal_embed=proposal_embed, proposal_margin=proposal_margin
        )
        self._raw_positive_infos = dict()
        return [chosen[imgs == img] for img in range(len(num_gts))]

    def _relate_to_boxes(
        self, proposal_embed: Tensor, proposal_margin: Tensor, points: Tensor, bboxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Make spatial channels ``(N, D)`` relative to predicted boxes ``(N, 4)`` as far as the settings say.

        It is done for locations that were chosen already, as most locations' boxes mean nothing.
        """
        others = (0, self.embed_dim - NUM_SPATIAL)
        if self.box_centers:
            shift = self.position.embed((bboxes[:, :2] + bboxes[:, 2:]) / 2 - points)
            proposal_embed = proposal_embed + functional.pad(shift, others)
        if self.box_margins:
            # Nothing smaller than a cell can be told apart from it, and early boxes have no size at all.
            sides = (bboxes[:, 2:] - bboxes[:, :2]).clamp(min=self.strides[0])
            units = 2 * self.prior_margin * self.coord_scale / sides
            proposal_margin = proposal_margin * functional.pad(units.square(), others, value=1)
        return proposal_embed, proposal_margin

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        centernesses: list[Tensor],
        proposal_embeds: list[Tensor],
        proposal_margins: list[Tensor],
        batch_img_metas: list[dict],
        cfg: ConfigDict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> InstanceList:
        """Turn the maps of :meth:`forward` in evaluation mode into detections.

        Args:
            cls_scores: From :meth:`forward`, like the following four.
            bbox_preds: In input pixels.
            centernesses: Logits.
            proposal_embeds: ``L x (B, D, h, w)``.
            proposal_margins: ``L x (B, D, h, w)``.
            batch_img_metas: Of each image ``img_shape``, and ``scale_factor`` if boxes are to be rescaled.
            cfg: Replaces ``test_cfg``.
            rescale: Whether boxes are in original pixels, else in input pixels.
            with_nms: Whether duplicates are removed.

        Returns:
            For each image ``bboxes`` ``(N, 4)``, ``scores`` and ``labels`` ``(N,)``, best first, with
            ``proposal_embed`` and ``proposal_margin`` ``(N, D)``.
        """
        cfg = cfg or self.test_cfg
        mlvl_points = self._mlvl_points(cls_scores)
        mlvl_maps = list(zip(cls_scores, bbox_preds, centernesses, proposal_embeds, proposal_margins))
        results_list = []
        for img, img_meta in enumerate(batch_img_metas):
            levels = [
                self._candidates_single([level_map[img].detach() for level_map in maps], points, img_meta, cfg)
                for maps, points in zip(mlvl_maps, mlvl_points)
            ]
            results = InstanceData.cat(levels)
            results_list.append(self._bbox_post_process(results, cfg, rescale, with_nms, img_meta))
        return results_list

    def _candidates_single(self, maps: list[Tensor], points: Tensor, img_meta: dict, cfg: ConfigDict) -> InstanceData:
        """Pick one level's detections in one image.

        Whether a detection counts at all is decided by its class; which ones are kept, by class and centerness.
        """
        cls_score, bbox_pred, centerness, embed, margin = (level_map.flatten(1) for level_map in maps)
        # Few of many scores count, so the threshold is brought to the logits and not the logits to probabilities.
        labels, cells = (cls_score > cls_score.new_tensor(cfg.get('score_thr', 0)).logit()).nonzero(as_tuple=True)
        scores = cls_score[labels, cells].sigmoid() * centerness[0, cells].sigmoid()
        nms_pre = cfg.get('nms_pre', -1)
        scores, order = scores.topk(min(nms_pre, len(scores)) if nms_pre > 0 else len(scores))
        labels, cells = labels[order], cells[order]
        bboxes = self.bbox_coder.decode(points[cells], bbox_pred[:, cells].t(), max_shape=img_meta['img_shape'])
        proposal_embed, proposal_margin = self._relate_to_boxes(
            embed[:, cells].t(), margin[:, cells].t(), points[cells], bboxes
        )
        return InstanceData(
            bboxes=bboxes,
            scores=scores,
            labels=labels,
            proposal_embed=proposal_embed,
            proposal_margin=proposal_margin,
        )
