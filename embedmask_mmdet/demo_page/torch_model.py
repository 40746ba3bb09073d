"""Detect with a checkpoint, and keep the embeddings: other thresholds and explanations need no second run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from mmdet.apis import inference_detector
from mmdet.structures import DetDataSample
from mmengine.config import Config
from pycocotools import mask as mask_utils

from embedmask_mmdet import ops
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.explain import explain_sample, keep_embeddings
from embedmask_mmdet.explain.pictures import draw_image
from embedmask_mmdet.inference import EmbedMaskInferencer
from embedmask_mmdet.models import EmbedMask
from embedmask_mmdet.runtime import Detections
from embedmask_mmdet.runtime.masks import Crop, bound


def decode(rle: dict) -> Crop:
    """Decode a mask, and keep only what is inside the box around it: images may be large."""
    crop = bound(mask_utils.decode(dict(rle)).view(bool))
    return Crop(crop.corner, crop.bitmap.copy())


@dataclass(frozen=True, eq=False)
class EncodedMasks:
    """Run lengths, as :class:`~embedmask_mmdet.runtime.Detections` takes masks. Only those in use are decoded.

    Attributes:
        rles: COCO's run lengths.
        shape: ``(h, w)`` of the image.
    """

    rles: Sequence[dict]
    shape: tuple[int, int]

    def __getitem__(self, index: np.ndarray) -> EncodedMasks:
        return EncodedMasks([self.rles[i] for i in index], self.shape)

    @cached_property
    def _crops(self) -> list[Crop]:
        return [decode(rle) for rle in self.rles]

    def crops(self) -> Iterator[Crop]:
        """Iterate over the masks inside the boxes around them."""
        return iter(self._crops)

    def to_array(self) -> np.ndarray:
        """Return bool ``(N, h, w)``."""
        bitmaps = np.zeros((len(self.rles), *self.shape), bool)
        for bitmap, ((x, y), crop) in zip(bitmaps, self.crops()):
            bitmap[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return bitmaps


@dataclass(frozen=True, eq=False)
class TorchResult:
    """What a model found in an image.

    Attributes:
        model: The model.
        image: ``(h, w, 3)`` uint8 in BGR.
        sample: MMDetection's result, with embeddings.
    """

    model: EmbedMask
    image: np.ndarray
    sample: DetDataSample

    @torch.no_grad()
    def cut_masks_at(self, probability: float) -> Detections:
        """Make the detections with another threshold of masks. Boxes and scores stay."""
        results, head = self.sample.pred_instances, self.model.mask_head
        shape = tuple(self.image.shape[:2])
        options = {**head.mask_stage_options(self.sample.metainfo, rescale=True), 'mask_thr': probability}
        embeddings = self.sample.pixel_embed, results.proposal_embed, results.proposal_margin
        rles = ops.instance_rles(*embeddings, results.crop_bboxes, **options)
        arrays = (results[name].cpu().numpy() for name in ('bboxes', 'scores', 'labels'))
        class_names = tuple(self.model.dataset_meta['classes'])
        return Detections(*arrays, class_names, shape, EncodedMasks(rles, shape))

    def explain(self, index: int, score_thr: float) -> tuple[np.ndarray, np.ndarray]:
        """Draw how the mask of a detection comes about, and what the model computes for the image.

        Args:
            index: Of the detection, 0 for the best one.
            score_thr: Lowest score of the detections that the picture of the image shows.

        Returns:
            Both pictures, ``(h, w, 3)`` uint8 in RGB.
        """
        classes = self.model.dataset_meta['classes']
        explanation = explain_sample(self.model, self.image, self.sample, classes, [index], score_thr)
        return explanation.draw_detections()[0], draw_image(explanation)


class TorchModel:
    """A model with the weights of a checkpoint.

    Args:
        config: Path of the config.
        checkpoint: Path of the checkpoint.
        device: For example ``cuda:0``; by default a GPU if there is one.

    Attributes:
        name: What to call it on the page.
        class_names: Names of the classes.
        mask_thr: Probability above which a pixel belongs to a mask.

    Raises:
        CheckpointError: If the checkpoint cannot be loaded.
        InputError: If it does not fit the config, or the model is not EmbedMask.
    """

    def __init__(self, config: Path, checkpoint: Path, device: str | None = None) -> None:
        cfg = Config.fromfile(config)
        cfg.merge_from_dict({'model.test_cfg.mask_format': 'rle'})
        self._model = EmbedMaskInferencer(cfg, checkpoint, device).model
        if not isinstance(self._model, EmbedMask):
            raise InputError(f'{config} is not a config of EmbedMask. Use one that is.')
        self.name = checkpoint.name
        self.class_names = tuple(self._model.dataset_meta['classes'])
        self.mask_thr = self._model.mask_head.mask_thr

    def detect(self, image: np.ndarray) -> TorchResult:
        """Detect in an image ``(h, w, 3)`` uint8 in BGR."""
        with keep_embeddings(self._model):
            return TorchResult(self._model, image, inference_detector(self._model, image))
