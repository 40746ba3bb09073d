"""The mask head: an embedding for each pixel, the mask loss, and the masks of detections."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from mmcv.cnn import ConvModule
from mmdet.models.dense_heads.base_mask_head import BaseMaskHead
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import scale_boxes
from mmdet.utils import ConfigType, InstanceList, OptConfigType, OptMultiConfig
from mmengine.model import constant_init
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional

from embedmask_mmdet import ops
from embedmask_mmdet.models.embedding import EmbeddingConv
from embedmask_mmdet.models.frames import EmbedMaskLocationFrame
from embedmask_mmdet.models.losses import SURELY_OUTSIDE
from embedmask_mmdet.models.refine import PixelGrid
from embedmask_mmdet.structures import RLEMasks
from embedmask_mmdet.targets import gt_masks


def make_rle_masks(pixel_embed: Tensor, *args, ori_shape: tuple[int, int], **kwargs) -> RLEMasks:
    """Make run lengths with ``ops.instance_rles`` that can be used like bitmaps."""
    rles = ops.instance_rles(pixel_embed, *args, ori_shape=ori_shape, **kwargs)
    return RLEMasks(rles, ori_shape, pixel_embed.device)


MASK_MAKERS = {'bitmap': ops.instance_masks, 'rle': make_rle_masks}


def weigh_locations(gt_inds: Tensor) -> Tensor:
    """Weigh the locations ``(N,)`` of an image so that each instance has the same weight, 1 in total."""
    shares = 1 / (gt_inds[:, None] == gt_inds).sum(dim=1)
    return shares / shares.sum()


def sort_by_score(results: InstanceData) -> InstanceData:
    """Bring detections into the order best first, without a copy of their masks if they are in it."""
    in_order = (results.scores[:-1] >= results.scores[1:]).all()
    return results if in_order else results[results.scores.argsort(descending=True, stable=True)]


@MODELS.register_module()
class EmbedMaskMaskHead(BaseMaskHead):
    """Mask head of `EmbedMask <https://arxiv.org/abs/1912.01954>`_; defaults are those of the authors' code.

    Shape legend: ``B`` images, ``D`` embedding channels, ``N`` instances or detections of an image, ``h, w`` cells of
    the finest feature map, ``H, W`` cells of the mask grid, which is ``mask_scale`` times finer.

    Args:
        in_channels: Channels of the feature maps.
        feat_channels: Channels of the tower.
        stacked_convs: Convolutions of the tower.
        embed_dim: ``D``, as in the box head.
        stride: Input pixels per cell of the finest feature map, which may be finer than those of the box head.
        mask_scale: Factor by which the pixel embedding is enlarged before it is compared with proposals.
        box_padding: Cells of the mask grid by which ground-truth boxes are grown; the loss ignores pixels outside.
            -1: the loss covers the whole grid.
        dcn_on_last_conv: Whether the last convolution of the tower is deformable.
        norm_cfg: Config of the tower's normalization.
        loss_mask: Config of the loss, which also makes its targets.
        train_cfg: Not used.
        test_cfg: ``mask_thr``, the probability above which a pixel belongs to an instance; ``resize_prob``, whether
            probabilities are resized to the image instead of their logarithms; ``mask_format``, ``'bitmap'`` or
            ``'rle'``; ``refine``, a list of configs of refinements; ``keep_embed``, whether results keep the
            embeddings that made the masks.
        init_cfg: Initialization.

    Raises:
        ValueError: If ``mask_scale``, ``mask_thr`` or ``mask_format`` is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        embed_dim: int = 16,
        stride: int = 8,
        mask_scale: int = 2,
        box_padding: int = -1,
        dcn_on_last_conv: bool = False,
        norm_cfg: OptConfigType = dict(type='GN', num_groups=32, requires_grad=True),  # noqa: B006
        loss_mask: ConfigType = dict(type='LovaszHingeLoss', loss_weight=0.5),  # noqa: B006
        train_cfg: OptConfigType = None,
        test_cfg: OptConfigType = None,
        init_cfg: OptMultiConfig = dict(type='Normal', layer=['Conv2d', 'EmbeddingConv'], std=0.01),  # noqa: B006
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if stride % mask_scale:
            raise ValueError(f'mask_scale must divide stride {stride}, got {mask_scale}')
        self.in_channels = in_channels
        self.embed_dim = embed_dim
        self.stride = stride
        self.mask_scale = mask_scale
        self.box_padding = box_padding
        self.loss_mask = MODELS.build(loss_mask)
        self.mask_convs = nn.Sequential()
        for i in range(stacked_convs):
            conv_cfg = dict(type='DCNv2') if dcn_on_last_conv and i == stacked_convs - 1 else None
            channels = in_channels if i == 0 else feat_channels
            conv = ConvModule(channels, feat_channels, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg, bias=True)
            self.mask_convs.append(conv)
        self.conv_embed = EmbeddingConv(feat_channels if stacked_convs else in_channels, embed_dim)
        self._read_test_cfg(test_cfg or {})

    def _read_test_cfg(self, test_cfg: ConfigType) -> None:
        self.mask_thr = test_cfg.get('mask_thr', ops.DEFAULT_MASK_THR)
        self.resize_prob = test_cfg.get('resize_prob', False)
        self.mask_format = test_cfg.get('mask_format', 'bitmap')
        self.keep_embed = test_cfg.get('keep_embed', False)
        self.refinements = [TASK_UTILS.build(refinement) for refinement in test_cfg.get('refine', ())]
        if not 0 < self.mask_thr < 1:
            raise ValueError(f'test_cfg.mask_thr must be a probability between 0 and 1, got {self.mask_thr}')
        if self.mask_format not in MASK_MAKERS:
            raise ValueError(f'test_cfg.mask_format must be one of {sorted(MASK_MAKERS)}, got {self.mask_format!r}')

    def init_weights(self) -> None:
        """Initialize the weights; a deformable convolution starts as an ordinary one."""
        super().init_weights()
        for module in self.modules():
            if hasattr(module, 'conv_offset'):
                constant_init(module.conv_offset, 0)

    def forward(self, x: Iterable[Tensor], frame: EmbedMaskLocationFrame) -> Tensor:
        """Embed pixels.

        Args:
            x: Feature maps in any iterable, the finest first, ``(B, in_channels, h, w)``; the finest is used.
            frame: Frame of the spatial embeddings, the same as the box head's.

        Returns:
            Float32 tensor ``(B, D, h, w)``.
        """
        feat = self.mask_convs(next(iter(x)))
        return self.conv_embed(feat, frame.embed_cells(feat.shape[-2:], self.stride))

    def loss_by_feat(
        self, pixel_embeds: Tensor, positives: InstanceData, batch_gt_instances: InstanceList
    ) -> dict[str, Tensor]:
        """Compare the probability maps of proposals with the masks of their instances.

        Args:
            pixel_embeds: From :meth:`forward`.
            positives: ``img_inds`` and ``gt_inds`` ``(N,)``; ``proposal_embed`` and ``proposal_margin`` ``(N, D)``,
                placed in the frame.
            batch_gt_instances: ``masks`` and ``bboxes`` of each image, in input pixels.

        Returns:
            ``loss_mask``: the mean over the instances of an image that have a positive, then over images.

        Raises:
            ValueError: If the data have no masks.
        """
        mask_embeds = functional.interpolate(
            pixel_embeds, scale_factor=self.mask_scale, mode='bilinear', align_corners=False
        )
        images = [positives[positives.img_inds == img] for img in range(len(pixel_embeds))]
        # The op and the masks belong to one image; everything after them handles all instances at once.
        compared = [self._compare_single(*image) for image in zip(mask_embeds, images, batch_gt_instances)]
        log_probs, targets, weights = (torch.cat(parts) for parts in zip(*compared))
        return dict(loss_mask=self.loss_mask(log_probs, targets, weights, avg_factor=len(pixel_embeds)))

    def _compare_single(
        self, mask_embed: Tensor, positives: InstanceData, gt_instances: InstanceData
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities and targets ``(N, H, W)`` of one image, and a weight for each location."""
        log_prob = ops.embedding_log_prob(mask_embed, positives.proposal_embed, positives.proposal_margin)
        grid_size, mask_stride, gt_inds = log_prob.shape[1:], self.stride // self.mask_scale, positives.gt_inds
        target = self.loss_mask.make_target(gt_masks(gt_instances), grid_size, mask_stride)
        target = target.to(log_prob.device)[gt_inds]
        if self.box_padding >= 0:
            inside = ops.inside_boxes(gt_instances.bboxes[gt_inds], grid_size, mask_stride, self.box_padding)
            log_prob, target = log_prob.masked_fill(~inside, SURELY_OUTSIDE), target * inside
        return log_prob, target, weigh_locations(gt_inds)

    def predict_by_feat(
        self,
        pixel_embeds: Tensor,
        batch_img_metas: list[dict],
        results_list: InstanceList,
        rescale: bool = False,
    ) -> InstanceList:
        """Give each detection its mask, and refine the detections.

        Args:
            pixel_embeds: From :meth:`forward`.
            batch_img_metas: ``img_shape``, ``ori_shape`` and ``scale_factor`` of each image.
            results_list: Detections of each image, ``bboxes`` in input pixels, ``proposal_embed`` and
                ``proposal_margin`` placed in the frame.
            rescale: Whether boxes and masks are in original pixels instead of input pixels.

        Returns:
            The detections, best first, with ``masks``, bool ``(N, H, W)`` or :class:`RLEMasks`. With ``keep_embed``
            they also keep ``points``, ``proposal_embed``, ``proposal_margin`` and ``crop_bboxes`` ``(N, 4)``, the boxes
            in input pixels that cut the masks.
        """
        images = zip(pixel_embeds.detach(), batch_img_metas, results_list)
        return [self._predict_single(*image, rescale) for image in images]

    def _predict_single(
        self, pixel_embed: Tensor, img_meta: dict, results: InstanceData, rescale: bool
    ) -> InstanceData:
        # A copy, so that no refinement changes it along with the boxes.
        results.crop_bboxes = results.bboxes.clone()
        results.masks = self._make_masks(pixel_embed, img_meta, results, rescale)
        if rescale:
            # A pipeline that does not resize leaves no factor.
            scale_factor = img_meta.get('scale_factor', (1.0, 1.0))
            results.bboxes = scale_boxes(results.bboxes, [1 / factor for factor in scale_factor])
        for refine in self.refinements:
            # Operators of mmcv fail without detections, and a refinement may remove all.
            if len(results):
                results = refine(results, PixelGrid(pixel_embed, self.stride, self.mask_thr))
        results = sort_by_score(results)
        if not self.keep_embed:
            for name in ('points', 'proposal_embed', 'proposal_margin', 'crop_bboxes'):
                results.pop(name, None)
        return results

    def _make_masks(
        self, pixel_embed: Tensor, img_meta: dict, results: InstanceData, rescale: bool
    ) -> Tensor | RLEMasks:
        return MASK_MAKERS[self.mask_format](
            pixel_embed,
            results.proposal_embed,
            results.proposal_margin,
            results.crop_bboxes,
            **self.mask_stage_options(img_meta, rescale),
        )

    def mask_stage_options(self, img_meta: dict, rescale: bool) -> dict:
        """Return what ``ops.instance_masks`` must know besides embeddings and boxes.

        Args:
            img_meta: ``img_shape`` and ``ori_shape`` of the image.
            rescale: As in :meth:`predict_by_feat`.

        Returns:
            Its keyword arguments.
        """
        img_shape = img_meta['img_shape'][:2]
        return dict(
            stride=self.stride,
            img_shape=img_shape,
            ori_shape=img_meta['ori_shape'][:2] if rescale else img_shape,
            mask_thr=self.mask_thr,
            upscale=self.mask_scale,
            resize_prob=self.resize_prob,
        )
