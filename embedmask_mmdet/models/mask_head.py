"""The pixel branch, and what becomes of pixels and proposals together: the mask loss and the masks."""

from __future__ import annotations

import torch
from mmcv.cnn import ConvModule
from mmcv.ops import batched_nms, roi_align
from mmdet.models.dense_heads.base_mask_head import BaseMaskHead
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import scale_boxes
from mmdet.utils import ConfigType, InstanceList, OptConfigType, OptInstanceList, OptMultiConfig
from mmengine.model import constant_init
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional

from embedmask_mmdet import ops
from embedmask_mmdet.models.embedding import EmbeddingConv, PositionEmbedding
from embedmask_mmdet.ops import inside_boxes
from embedmask_mmdet.structures import RLEMasks, mask_bboxes
from embedmask_mmdet.targets import gt_masks, mask_coverage, mask_targets


def rle_masks(*args, ori_shape: tuple[int, int], **kwargs) -> RLEMasks:
    """Wrap what ``ops.instance_rles`` returns, so that MMDetection can use it like bitmaps."""
    return RLEMasks(ops.instance_rles(*args, ori_shape=ori_shape, **kwargs), ori_shape)


def instance_weights(gt_inds: Tensor) -> Tensor:
    """Weigh the locations ``(N,)`` of an image's instances so that all instances count alike, together 1."""
    shares = 1 / (gt_inds[:, None] == gt_inds).sum(dim=1)
    return shares / shares.sum()


def mask_certainties(pixel_embed: Tensor, results: InstanceData, stride: int, mask_thr: float) -> Tensor:
    """Compute the mean probability inside each detection's mask, from points spread evenly over its box.

    Args:
        pixel_embed: ``(D, h, w)``.
        results: ``proposal_embed`` and ``proposal_margin`` ``(N, D)``, ``bboxes`` ``(N, 4)`` in input pixels.
        stride: Input pixels a cell of ``pixel_embed``.
        mask_thr: Probability above which a point is inside.

    Returns:
        ``(N,)``, 0 where no point is inside.
    """
    rois = functional.pad(results.bboxes, (1, 0))
    points = roi_align(pixel_embed[None], rois, CERTAINTY_POINTS, 1 / stride, 1)
    distance = (points - results.proposal_embed[..., None, None]).square()
    prob = torch.exp(-(results.proposal_margin[..., None, None] * distance).sum(dim=1))
    inside = prob > mask_thr
    return (prob * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)


def box_masks(results: InstanceData, nms: ConfigType, weight: float = 1.0) -> InstanceData:
    """Move boxes to those around the masks, and remove duplicates among them or lower their scores.

    Boxes that regression got wrong hide that several detections are one object. Their masks show it.

    Args:
        results: ``masks``, and ``bboxes`` ``(N, 4)`` in pixels of the masks, which stay where a mask is empty;
            ``scores`` and ``labels`` ``(N,)``.
        nms: Config of the NMS, whose scores are taken over: ``soft_nms`` lowers those of duplicates.
        weight: How far boxes move, from 0 to 1.

    Returns:
        The detections that are left, best first.
    """
    bboxes = mask_bboxes(results.masks).to(results.bboxes)
    is_empty = (bboxes[:, 2:] <= bboxes[:, :2]).any(dim=1, keepdim=True)
    results.bboxes = torch.where(is_empty, results.bboxes, results.bboxes.lerp(bboxes, weight))
    kept, inds = batched_nms(results.bboxes, results.scores, results.labels, nms)
    results = results[inds]
    results.scores = kept[:, 4]
    return results


def check_nms(nms: ConfigType) -> None:
    """Try an NMS on one box, as what is wrong with its config would else be told after the first epoch.

    Args:
        nms: Config of the NMS, as mmcv's ``batched_nms`` takes it.

    Raises:
        ValueError: If mmcv cannot call it.
    """
    try:
        batched_nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), torch.zeros(1), nms)
    except (AssertionError, NameError, TypeError) as error:
        raise ValueError(
            f"test_cfg.mask_box_nms must be a config of mmcv's nms or soft_nms, got {dict(nms)}, which ends in "
            f'{error!r}; where it replaces an inherited one, it needs _delete_=True'
        ) from error


CERTAINTY_POINTS = (14, 14)
TARGETS = {'binary': mask_targets, 'coverage': mask_coverage}
SEGMENTERS = {'bitmap': ops.instance_masks, 'rle': rle_masks}


@MODELS.register_module()
class EmbedMaskMaskHead(BaseMaskHead):
    """Mask head of `EmbedMask <https://arxiv.org/abs/1912.01954>`_ with the reference's values as defaults.

    Shape legend: ``B`` images, ``D`` embedding channels, ``N`` instances or detections of an image, ``h, w`` cells of
    the finest feature map, ``H, W`` cells of the mask grid, which is ``mask_scale`` times finer.

    Args:
        in_channels: Channels of the feature maps.
        feat_channels: Channels of the tower.
        stacked_convs: Convolutions of the tower.
        embed_dim: ``D``, as in the box head.
        embed_reduce_factor: What the tower's features are divided by before the embedding's convolution.
        num_levels: Feature maps that feed the tower, the finest first; coarser ones are enlarged and added to it.
        stride: Input pixels a cell of the finest feature map, which may be a level below the box head's.
        mask_scale: By how much the pixel embedding is enlarged before it is compared with proposals.
        box_padding: Cells of the mask grid by which the box is grown outside which the loss looks at no pixel;
            -1 for the loss over the whole grid.
        mask_target: What probabilities are trained towards: ``'binary'``, the reference's, where a cell belongs to a
            mask if anything of its middle does, or ``'coverage'``, the part of a cell that the mask covers.
        dcn_on_last_conv: Whether the tower's last convolution is deformable.
        conv_cfg: Config of the tower's convolutions.
        norm_cfg: Config of the tower's normalization.
        loss_mask: Config of the loss.
        train_cfg: Not used.
        test_cfg: ``mask_thr``, the probability above which a pixel belongs to an instance; ``resize_prob``,
            whether probabilities are resized to the image and not their logarithms; ``mask_format``, ``'bitmap'`` or
            ``'rle'``; ``keep_embed``, whether results also hold the embeddings that made the masks;
            ``score_masks``, whether a detection's score is multiplied by its mask's mean probability;
            ``mask_box_nms``, config of an NMS, or None: boxes become those around the masks, of which duplicates
            are removed once more, or ranked lower by ``soft_nms``; ``mask_box_weight``, how far they move there, from
            0 to 1.
        init_cfg: Initialization.

    Raises:
        ValueError: If ``mask_thr`` is not between 0 and 1, ``mask_format`` or ``mask_target`` is unknown,
            ``num_levels`` below 1, ``mask_box_nms`` no config of an NMS, or if ``mask_box_weight`` is not from 0 to 1.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        embed_dim: int = 16,
        embed_reduce_factor: float = 1.0,
        num_levels: int = 1,
        stride: int = 8,
        mask_scale: int = 2,
        box_padding: int = -1,
        mask_target: str = 'binary',
        dcn_on_last_conv: bool = False,
        conv_cfg: OptConfigType = None,
        norm_cfg: OptConfigType = dict(type='GN', num_groups=32, requires_grad=True),  # noqa: B006
        loss_mask: ConfigType = dict(type='LovaszHingeLoss', loss_weight=0.5),  # noqa: B006
        train_cfg: OptConfigType = None,
        test_cfg: OptConfigType = None,
        init_cfg: OptMultiConfig = dict(type='Normal', layer=['Conv2d', 'EmbeddingConv'], std=0.01),  # noqa: B006
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if stride % mask_scale:
            raise ValueError(f'mask_scale must divide stride {stride}, got {mask_scale}')
        test_cfg = test_cfg or {}
        self.mask_thr = test_cfg.get('mask_thr', 0.53)
        self.resize_prob = test_cfg.get('resize_prob', False)
        self.mask_format = test_cfg.get('mask_format', 'bitmap')
        self.keep_embed = test_cfg.get('keep_embed', False)
        self.score_masks = test_cfg.get('score_masks', False)
        self.mask_box_nms = test_cfg.get('mask_box_nms')
        self.mask_box_weight = test_cfg.get('mask_box_weight', 1.0)
        if self.mask_box_nms:
            check_nms(self.mask_box_nms)
        if num_levels < 1:
            raise ValueError(f'num_levels must be at least 1, got {num_levels}')
        if not 0 <= self.mask_box_weight <= 1:
            raise ValueError(f'test_cfg.mask_box_weight must be from 0 to 1, got {self.mask_box_weight}')
        if not 0 < self.mask_thr < 1:
            raise ValueError(f'test_cfg.mask_thr is a probability between 0 and 1, got {self.mask_thr}')
        if self.mask_format not in SEGMENTERS:
            raise ValueError(f'test_cfg.mask_format must be one of {sorted(SEGMENTERS)}, got {self.mask_format!r}')
        if mask_target not in TARGETS:
            raise ValueError(f'mask_target must be one of {sorted(TARGETS)}, got {mask_target!r}')
        self.embed_dim = embed_dim
        self.num_levels = num_levels
        self.stride = stride
        self.mask_scale = mask_scale
        self.box_padding = box_padding
        self.mask_target = mask_target
        self.mask_convs = nn.Sequential(
            *(
                ConvModule(
                    in_channels if i == 0 else feat_channels,
                    feat_channels,
                    3,
                    padding=1,
                    conv_cfg=dict(type='DCNv2') if dcn_on_last_conv and i == stacked_convs - 1 else conv_cfg,
                    norm_cfg=norm_cfg,
                    bias=True,
                )
                for i in range(stacked_convs)
            )
        )
        self.conv_embed = EmbeddingConv(feat_channels if stacked_convs else in_channels, embed_dim, embed_reduce_factor)
        self.loss_mask = MODELS.build(loss_mask)
        self._position: tuple[PositionEmbedding, ...] = ()

    def init_weights(self) -> None:
        """Initialize the weights; a deformable convolution starts as an ordinary one."""
        super().init_weights()
        for module in self.modules():
            if hasattr(module, 'conv_offset'):
                constant_init(module.conv_offset, 0)

    def share_position(self, position: PositionEmbedding) -> None:
        """Compare pixels with proposals by the box head's locations and its learnable scale.

        The module stays the box head's alone, so that its parameter has one name and one place in the optimizer.

        Args:
            position: The box head's ``position``.
        """
        self._position = (position,)

    def forward(self, x: tuple[Tensor, ...], instances: OptInstanceList = None) -> tuple[Tensor]:
        """Embed pixels.

        Args:
            x: Feature maps, the finest first, ``(B, in_channels, h, w)``.
            instances: Not used; ``BaseMaskHead`` hands on what the box head found.

        Returns:
            The pixel embedding, float32 ``(B, D, h, w)``, in a tuple.

        Raises:
            RuntimeError: If :meth:`share_position` was not called.
        """
        if not self._position:
            raise RuntimeError('call share_position(bbox_head.position) first, as the detector EmbedMask does')
        feat = self.mask_convs(self._merge_levels(x[: self.num_levels]))
        return (self.conv_embed(feat, self._position[0](feat.shape[-2:], self.stride)),)

    @staticmethod
    def _merge_levels(levels: tuple[Tensor, ...]) -> Tensor:
        finest, *coarser = levels
        for level in coarser:
            finest = finest + functional.interpolate(level, finest.shape[-2:], mode='bilinear', align_corners=False)
        return finest

    def loss(
        self,
        x: tuple[Tensor, ...],
        batch_data_samples: SampleList,
        positive_infos: OptInstanceList = None,
        **kwargs,
    ) -> dict[str, Tensor]:
        """Compute the loss as ``BaseMaskHead`` does, but without its copy of all masks to pad them.

        Args:
            x: As in :meth:`forward`.
            batch_data_samples: With ``gt_instances``.
            positive_infos: From ``EmbedMaskBBoxHead.get_positive_infos``.
            kwargs: Handed on to :meth:`loss_by_feat`.

        Returns:
            ``loss_mask``.
        """
        batch_gt_instances, batch_gt_instances_ignore, batch_img_metas = unpack_gt_instances(batch_data_samples)
        return self.loss_by_feat(
            *self(x, positive_infos),
            batch_gt_instances=batch_gt_instances,
            batch_img_metas=batch_img_metas,
            positive_infos=positive_infos,
            batch_gt_instances_ignore=batch_gt_instances_ignore,
            **kwargs,
        )

    def loss_by_feat(
        self,
        pixel_embeds: Tensor,
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        positive_infos: InstanceList,
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, Tensor]:
        """Compare each instance's probability map with its mask.

        Args:
            pixel_embeds: From :meth:`forward`.
            batch_gt_instances: ``masks`` and ``bboxes`` of each image, in input pixels.
            batch_img_metas: Not used.
            positive_infos: From ``EmbedMaskBBoxHead.get_positive_infos``.
            batch_gt_instances_ignore: Not used.

        Returns:
            ``loss_mask``: the mean over an image's instances that have a positive, then over images.

        Raises:
            ValueError: If the data have no masks.
        """
        mask_embeds = functional.interpolate(
            pixel_embeds, scale_factor=self.mask_scale, mode='bilinear', align_corners=False
        )
        # The op and the masks are those of one image; everything after them is done for all instances at once.
        compared = [self._compare_single(*image) for image in zip(mask_embeds, positive_infos, batch_gt_instances)]
        log_probs, targets, weights = (torch.cat(parts) for parts in zip(*compared))
        return dict(loss_mask=self.loss_mask(log_probs, targets, weights, avg_factor=len(pixel_embeds)))

    def _compare_single(
        self, mask_embed: Tensor, positives: InstanceData, gt_instances: InstanceData
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities and targets ``(N, H, W)`` of one image, and a weight for each location."""
        log_prob = ops.embedding_log_prob(mask_embed, positives.proposal_embed, positives.proposal_margin)
        mask_stride = self.stride // self.mask_scale
        gt_inds = positives.gt_inds
        target = TARGETS[self.mask_target](gt_masks(gt_instances), log_prob.shape[1:], mask_stride)
        target = target.to(log_prob.device)[gt_inds]
        if self.box_padding >= 0:
            inside = inside_boxes(gt_instances.bboxes[gt_inds], log_prob.shape[1:], mask_stride, self.box_padding)
            # What is surely background and is background costs nothing.
            log_prob, target = log_prob.masked_fill(~inside, -torch.inf), target * inside
        return log_prob, target, instance_weights(gt_inds)

    def predict_by_feat(
        self,
        pixel_embeds: Tensor,
        batch_img_metas: list[dict],
        results_list: InstanceList,
        rescale: bool = False,
    ) -> InstanceList:
        """Give each detection its mask.

        Args:
            pixel_embeds: From :meth:`forward`.
            batch_img_metas: ``img_shape``, ``ori_shape`` and ``scale_factor`` of each image.
            results_list: From ``EmbedMaskBBoxHead.predict_by_feat``, boxes in input pixels.
            rescale: Whether boxes and masks are in original pixels, else in input pixels.

        Returns:
            The same detections with ``masks``, bool ``(N, H, W)`` or :class:`RLEMasks`. Their ``proposal_embed`` and
            ``proposal_margin`` ``(N, D)`` stay only with ``keep_embed``, and then there is ``pixel_embed`` as well,
            ``(D, h, w)``, which belongs to the image and so is meta information.
        """
        if self.score_masks:
            results_list = [self._score_masks(*image) for image in zip(pixel_embeds, results_list)]
        images = zip(pixel_embeds, batch_img_metas, results_list)
        return [self._segment_single(*image, rescale) for image in images]

    def _segment_single(
        self, pixel_embed: Tensor, img_meta: dict, results: InstanceData, rescale: bool
    ) -> InstanceData:
        img_shape = img_meta['img_shape'][:2]
        results.masks = SEGMENTERS[self.mask_format](
            pixel_embed,
            results.proposal_embed,
            results.proposal_margin,
            results.bboxes,
            stride=self.stride,
            img_shape=img_shape,
            ori_shape=img_meta['ori_shape'][:2] if rescale else img_shape,
            mask_thr=self.mask_thr,
            upscale=self.mask_scale,
            resize_prob=self.resize_prob,
        )
        if self.keep_embed:
            results.set_metainfo(dict(pixel_embed=pixel_embed.clone()))
        else:
            del results.proposal_embed, results.proposal_margin
        if rescale:
            # A pipeline that does not resize leaves no factor.
            scale_factor = img_meta.get('scale_factor', (1.0, 1.0))
            results.bboxes = scale_boxes(results.bboxes, [1 / factor for factor in scale_factor])
        if self.mask_box_nms and len(results):
            results = box_masks(results, self.mask_box_nms, self.mask_box_weight)
        return results

    def _score_masks(self, pixel_embed: Tensor, results: InstanceData) -> InstanceData:
        results.scores = results.scores * mask_certainties(pixel_embed, results, self.stride, self.mask_thr)
        return results[results.scores.argsort(descending=True, stable=True)]
