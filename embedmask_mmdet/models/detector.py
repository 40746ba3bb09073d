"""The detector: the flow of EmbedMask, in the order of the paper's figure 2."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, OptSampleList, SampleList
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from torch import Tensor

from embedmask_mmdet.models.pretrained import explain_missing_downloads
from embedmask_mmdet.models.proposals import ProposalMaps
from embedmask_mmdet.models.weights import check_on_load, write_meaning


def split_by_pad_shape(batch_inputs: Tensor, batch_data_samples: SampleList) -> Iterator[tuple[Tensor, SampleList]]:
    """Split a batch so that no image is padded for another's sake.

    Group normalization computes its statistics over the padding too, so results would depend on the other images.

    Args:
        batch_inputs: ``(B, 3, H, W)``.
        batch_data_samples: With ``pad_shape`` ``(h, w)`` from MMDetection's data preprocessor; without it, an image is
            taken to be ``(H, W)``.

    Yields:
        Images of equal size, cut to it, and their samples.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, sample in enumerate(batch_data_samples):
        pad_shape = sample.metainfo.get('pad_shape', batch_inputs.shape[-2:])
        groups.setdefault(tuple(pad_shape[:2]), []).append(index)
    for (height, width), indices in groups.items():
        yield batch_inputs[indices, :, :height, :width], [batch_data_samples[index] for index in indices]


@MODELS.register_module()
class EmbedMask(SingleStageInstanceSegmentor):
    """`EmbedMask <https://arxiv.org/abs/1912.01954>`_: a pixel belongs to a proposal if their embeddings are close.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck.
        bbox_head: Config of the box head, which embeds proposals.
        mask_head: Config of the mask head, which embeds pixels.
        frame: Config of the frame in which both express spatial embeddings.
        pixel_branch: Config of what computes the mask head's features from the backbone's finest stage and the neck's
            levels; None if the mask head reads the finest level of the neck.
        train_cfg: Not used.
        test_cfg: Of both heads.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Initialization.

    Raises:
        ValueError: If the heads do not fit together, or ``bbox_head`` sets what follows from ``frame``.
    """

    def __init__(
        self,
        backbone: ConfigType,
        neck: ConfigType,
        bbox_head: ConfigType,
        mask_head: ConfigType,
        frame: ConfigType = dict(type='EmbedMaskLocationFrame'),  # noqa: B006
        pixel_branch: OptConfigType = None,
        train_cfg: OptConfigType = None,
        test_cfg: OptConfigType = None,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        if 'initial_margin' in bbox_head:
            raise ValueError(
                'model.frame decides about bbox_head.initial_margin. Set model.frame.prior_margin instead.'
            )
        frame = MODELS.build(frame)
        bbox_head = dict(bbox_head, initial_margin=frame.initial_margin)
        super().__init__(backbone, neck, bbox_head, mask_head, train_cfg, test_cfg, data_preprocessor, init_cfg)
        self.frame = frame
        self.pixel_branch = MODELS.build(pixel_branch) if pixel_branch else None
        self._check_heads()
        self._register_state_dict_hook(write_meaning)
        self._register_load_state_dict_pre_hook(check_on_load, with_module=True)

    def init_weights(self) -> None:
        """Initialize the weights.

        Raises:
            InputError: If pretrained weights cannot be downloaded.
        """
        with explain_missing_downloads(self):
            super().init_weights()

    def _check_heads(self) -> None:
        if self.bbox_head.embed_dim != self.mask_head.embed_dim:
            raise ValueError(
                f'proposals and pixels need the same embed_dim, got {self.bbox_head.embed_dim} in bbox_head and '
                f'{self.mask_head.embed_dim} in mask_head'
            )
        if self.pixel_branch and self.pixel_branch.channels != self.mask_head.in_channels:
            raise ValueError(
                f'mask_head.in_channels must be pixel_branch.channels, {self.pixel_branch.channels}; got '
                f'{self.mask_head.in_channels}'
            )
        ratio = self.bbox_head.strides[0] / self.mask_head.stride
        if ratio < 1 or not math.log2(ratio).is_integer():
            raise ValueError(
                'mask_head.stride must be that of the finest level of bbox_head, or 2, 4, ... times finer; got '
                f'{self.mask_head.stride} and bbox_head.strides {self.bbox_head.strides}'
            )

    @property
    def num_mask_levels(self) -> int:
        """Feature maps before those of the box head, for the mask head alone."""
        return 1 if self.pixel_branch else round(math.log2(self.bbox_head.strides[0] / self.mask_head.stride))

    @property
    def neck_stride(self) -> int:
        """Input pixels per cell of the neck's finest level."""
        return self.bbox_head.strides[0] if self.pixel_branch else self.mask_head.stride

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of all levels, and of pixels if they have a branch of their own.

        Args:
            batch_inputs: ``(B, 3, H, W)``, normalized.

        Returns:
            ``(B, C, h, w)`` of each level, the finest first; that of the pixel branch is before them.

        Raises:
            ValueError: If the levels are not those that the heads need.
        """
        # After model.half() or model.bfloat16(), images are still float32.
        stages = self.backbone(batch_inputs.to(next(self.backbone.parameters()).dtype))
        levels = self.neck(stages)
        self._check_levels(len(levels))
        if not self.pixel_branch:
            return levels
        self._check_finest_stage(batch_inputs.shape[-1], stages[0].shape[-1])
        return self.pixel_branch(stages[0], levels), *levels

    def _check_levels(self, num_levels: int) -> None:
        needed = len(self.bbox_head.strides) + (0 if self.pixel_branch else self.num_mask_levels)
        if num_levels != needed:
            raise ValueError(
                f'the neck gives {num_levels} levels, the heads need {needed}, with strides from {self.neck_stride} to '
                f'{self.bbox_head.strides[-1]}: set num_outs and start_level of model.neck'
            )

    def _check_finest_stage(self, width: int, stage_width: int) -> None:
        if stage_width != math.ceil(width / self.mask_head.stride):
            raise ValueError(
                f'mask_head.stride is {self.mask_head.stride}, but {width} input pixels are {stage_width} cells of the '
                'finest stage of model.backbone: set mask_head.stride or backbone.out_indices'
            )

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            batch_inputs: ``(B, 3, H, W)``, normalized.
            batch_data_samples: With ``gt_instances``.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_centerness`` and ``loss_mask``.
        """
        gt_instances, _, _ = unpack_gt_instances(batch_data_samples)
        proposals, pixel_embeds = self._embed(batch_inputs)
        targets = self.bbox_head.assign(proposals, gt_instances)
        losses = self.bbox_head.loss_by_feat(proposals, targets)
        positives = self.bbox_head.pick_positives(proposals, targets, gt_instances)
        positives = self.frame.place_positives(positives, self.bbox_head.strides[0])
        return losses | self.mask_head.loss_by_feat(pixel_embeds, positives, gt_instances)

    @torch.no_grad()
    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Detect and segment.

        Args:
            batch_inputs: ``(B, 3, H, W)``, normalized.
            batch_data_samples: With ``img_shape``, ``ori_shape`` and ``scale_factor``.
            rescale: Whether results are in original pixels instead of input pixels.

        Returns:
            The samples with ``pred_instances``: ``bboxes``, ``scores``, ``labels`` and ``masks``. With
            ``test_cfg.keep_embed`` also the embeddings, and ``pixel_embed`` in the sample itself.
        """
        for images, samples in split_by_pad_shape(batch_inputs, batch_data_samples):
            img_metas = [sample.metainfo for sample in samples]
            proposals, pixel_embeds = self._embed(images)
            results = self.bbox_head.predict_by_feat(proposals, batch_img_metas=img_metas)
            results = [self.frame.place(detections, self.bbox_head.strides[0]) for detections in results]
            results = self.mask_head.predict_by_feat(pixel_embeds, img_metas, results, rescale)
            self.add_pred_to_datasample(samples, results)
            if self.mask_head.keep_embed:
                self._keep_pixel_embeds(samples, pixel_embeds)
        return batch_data_samples

    def _embed(self, batch_inputs: Tensor) -> tuple[ProposalMaps, Tensor]:
        """Run the network: features, then the towers of proposals and of pixels."""
        feats = self.extract_feat(batch_inputs)
        proposals = self.bbox_head(feats[self.num_mask_levels :], self.frame)
        return proposals, self.mask_head(feats, self.frame)

    @staticmethod
    def _keep_pixel_embeds(samples: list[DetDataSample], pixel_embeds: Tensor) -> None:
        # Copied, so that one image does not hold the memory of its batch.
        for sample, pixel_embed in zip(samples, pixel_embeds):
            sample.pixel_embed = pixel_embed.clone()

    def _forward(self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None) -> tuple:
        """Run the network alone.

        Args:
            batch_inputs: ``(B, 3, H, W)``, normalized.
            batch_data_samples: Not used.

        Returns:
            The five lists of :class:`ProposalMaps`, and the pixel embedding ``(B, D, h, w)``.
        """
        proposals, pixel_embeds = self._embed(batch_inputs)
        return (*proposals, pixel_embeds)
