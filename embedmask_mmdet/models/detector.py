"""The detector: a backbone, a neck, and two heads that agree on embeddings."""

from __future__ import annotations

import math

from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from torch import Tensor


def group_by_pad_shape(batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[tuple[int, int], list[int]]:
    """Find the images of a batch that alone would be padded to the same size.

    Args:
        batch_inputs: ``(B, 3, H, W)``.
        batch_data_samples: With ``pad_shape`` ``(h, w)``, as MMDetection's data preprocessor writes it; without, an
            image is taken to be ``(H, W)``.

    Returns:
        The images' indices by ``(h, w)``, in their order.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, sample in enumerate(batch_data_samples):
        pad_shape = sample.metainfo.get('pad_shape', batch_inputs.shape[-2:])
        groups.setdefault(tuple(pad_shape[:2]), []).append(index)
    return groups


@MODELS.register_module()
class EmbedMask(SingleStageInstanceSegmentor):
    """`EmbedMask <https://arxiv.org/abs/1912.01954>`_: a pixel belongs to a proposal if their embeddings are close.

    Args:
        args: What ``SingleStageInstanceSegmentor`` takes, with ``bbox_head`` of type ``EmbedMaskBBoxHead`` and
            ``mask_head`` of type ``EmbedMaskMaskHead``.
        kwargs: Likewise.

    Raises:
        ValueError: If the heads differ in ``embed_dim``, if their strides do not fit, or when a checkpoint with another
            ``embed_dim`` is loaded.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.bbox_head.embed_dim != self.mask_head.embed_dim:
            raise ValueError(
                f'proposals and pixels need the same embed_dim, got {self.bbox_head.embed_dim} in bbox_head and '
                f'{self.mask_head.embed_dim} in mask_head'
            )
        self.num_levels = len(self.bbox_head.strides) + self._count_finer_levels()
        self.mask_head.share_position(self.bbox_head.position)
        self._never_loaded: list[str] = []
        self._register_load_state_dict_pre_hook(self._check_state_dict)

    def _count_finer_levels(self) -> int:
        """Count the levels of the neck that are the mask head's alone."""
        ratio = self.bbox_head.strides[0] / self.mask_head.stride
        if ratio < 1 or not math.log2(ratio).is_integer():
            raise ValueError(
                f'mask_head.stride must be that of the finest level, or of one that is 2, 4, ... times finer, got '
                f'{self.mask_head.stride} and bbox_head.strides {self.bbox_head.strides}'
            )
        return int(math.log2(ratio))

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of all levels.

        Args:
            batch_inputs: ``(B, 3, H, W)``, normalized.

        Returns:
            ``(B, C, h, w)`` of each level, the finest first.

        Raises:
            ValueError: If the neck has not as many levels as the heads have strides.
        """
        x = super().extract_feat(batch_inputs)
        if len(x) != self.num_levels:
            raise ValueError(
                f'the neck gives {len(x)} levels, the heads need {self.num_levels}, with strides from '
                f'{self.mask_head.stride} to {self.bbox_head.strides[-1]}: set num_outs and start_level of model.neck'
            )
        return x

    def _check_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
        """Refuse weights of other embeddings, which MMEngine would leave out with no more than a warning."""
        for name in ('bbox_head.conv_embed.weight', 'mask_head.conv_embed.weight'):
            weight = state_dict.get(prefix + name)
            if weight is not None and len(weight) != self.bbox_head.embed_dim:
                raise ValueError(
                    f'the checkpoint has embed_dim={len(weight)} ({prefix}{name}), the config '
                    f'{self.bbox_head.embed_dim}: set model.bbox_head.embed_dim and model.mask_head.embed_dim to '
                    f'{len(weight)}, or use another checkpoint'
                )
        heads = {f'{prefix}{name}' for name, _ in self.named_parameters() if '_head.' in name}
        self._never_loaded = sorted(heads - state_dict.keys())

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            batch_inputs: ``(B, 3, H, W)``, normalized.
            batch_data_samples: With ``gt_instances``.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_centerness`` and ``loss_mask``.
        """
        self._never_loaded = []
        return super().loss(batch_inputs, batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Detect and segment.

        Args:
            batch_inputs: ``(B, 3, H, W)``, normalized.
            batch_data_samples: With ``img_shape``, ``ori_shape`` and ``scale_factor``.
            rescale: Whether results are in original pixels, else in input pixels.

        Returns:
            The samples with ``pred_instances``: ``bboxes``, ``scores``, ``labels`` and ``masks``.

        Raises:
            RuntimeError: If the checkpoint that was loaded last is not one of EmbedMask.
        """
        if self._never_loaded:
            raise RuntimeError(
                f'the checkpoint that was loaded is not one of this model: it lacks {len(self._never_loaded)} weights '
                f'of the heads, such as {self._never_loaded[0]}; load one that was trained with this config'
            )
        return self._predict_independently(batch_inputs, batch_data_samples, rescale)

    def _predict_independently(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool) -> SampleList:
        """Predict as if each image were alone.

        Group normalization's statistics cover the padding, so an image must not be padded for another's sake.
        """
        for (height, width), indices in group_by_pad_shape(batch_inputs, batch_data_samples).items():
            images = batch_inputs[indices, :, :height, :width]
            super().predict(images, [batch_data_samples[index] for index in indices], rescale=rescale)
        return batch_data_samples

    def _forward(self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None) -> tuple:
        """Run the network alone.

        Args:
            batch_inputs: ``(B, 3, H, W)``, normalized.
            batch_data_samples: Not used.

        Returns:
            What ``bbox_head`` and ``mask_head`` return, one after the other.
        """
        x = self.extract_feat(batch_inputs)
        return self.bbox_head(x) + self.mask_head(x)
