"""MMDetection's ``DetInferencer`` with a score threshold for each class and a choice of input size."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from torch import nn

from embedmask_mmdet.analysis.thresholds import DEFAULT_THRESHOLD
from embedmask_mmdet.engine.design import get_classes
from embedmask_mmdet.errors import InputError, name_some
from embedmask_mmdet.models.weights import check_classes

FONT_IMAGE_SIZE = 640  # square root of the area, in pixels, for which the visualizer's fonts and lines are made
COCO_ASPECT_RATIO = 1333 / 800  # of the sizes in MMDetection's COCO configs


class EmbedMaskInferencer(DetInferencer):
    """Detect and draw as ``DetInferencer`` does, and keep only detections that reach the threshold of their class.

    Args:
        config: The config, or its file.
        checkpoint: File or URL of the weights.
        device: For example ``cuda:0``; by default a GPU if there is one.
        palette: ``coco``, ``voc``, ``citys``, ``random``; ``none`` for the palette of the config or checkpoint.
        min_image_size: Resize the short side of images to this many pixels; None for the size in the config.

    Attributes:
        thresholds: ``(num_classes,)`` floats, the lowest score to keep of each class. Set it to change them.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        InputError: The checkpoint does not fit the config, or `min_image_size` is given and the config's test pipeline
            does not resize.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | None = None,
        palette: str = 'none',
        min_image_size: int | None = None,
    ) -> None:
        config = Config.fromfile(config) if isinstance(config, (str, Path)) else config
        self.config_name = config.filename
        self.checkpoint_name = str(checkpoint)
        self.min_image_size = min_image_size
        device = device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
        super().__init__(config, self.checkpoint_name, device, palette=palette, show_progress=False)
        self.thresholds: Sequence[float] = [DEFAULT_THRESHOLD] * len(self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.model.dataset_meta['classes'])

    def forward(self, inputs: dict | tuple, **kwargs) -> list[DetDataSample]:
        """Detect in a batch that :meth:`preprocess` or ``collate_fn`` returned."""
        samples = super().forward(inputs, **kwargs)
        thresholds = torch.tensor(self.thresholds)
        for sample in samples:
            instances = sample.pred_instances.cpu()
            sample.pred_instances = instances[instances.scores >= thresholds[instances.labels]]
        return samples

    def visualize(
        self, inputs: Sequence[str | np.ndarray], preds: Sequence[DetDataSample], **kwargs
    ) -> list[np.ndarray] | None:
        """Draw detections.

        Args:
            inputs: Files, or images ``(h, w, 3)`` uint8 in BGR.
            preds: What :meth:`forward` returned for them. ``pred_score_thr`` has no effect on them.
            **kwargs: Other arguments of ``DetInferencer.visualize``.

        Returns:
            Pictures ``(h, w, 3)`` uint8 in RGB, or None if nothing is to be drawn.
        """
        pictures = []
        for image, sample in zip(inputs, preds):
            self._set_font_size(sample.ori_shape)
            # DetInferencer draws on an array as if it were RGB.
            image = image[..., ::-1] if isinstance(image, np.ndarray) else image
            pictures += super().visualize([image], [sample], **{**kwargs, 'pred_score_thr': -1}) or []
        return pictures or None

    def _set_font_size(self, image_shape: tuple[int, int]) -> None:
        # Sizes of fonts and lines are in points, so a higher resolution enlarges them.
        self.visualizer.dpi = 100 * max(1.0, float(np.prod(image_shape)) ** 0.5 / FONT_IMAGE_SIZE)
        self.visualizer.fig_save.set_dpi(self.visualizer.dpi)

    def _load_weights_to_model(
        self, model: nn.Module, checkpoint: Mapping | None, cfg: Config | ConfigDict | None
    ) -> None:
        self._check_weights(model, checkpoint)
        super()._load_weights_to_model(model, checkpoint, cfg)
        classes, num_classes = model.dataset_meta['classes'], model.bbox_head.num_classes
        if len(classes) != num_classes:
            raise InputError(
                f'{self.checkpoint_name} has {len(classes)} classes ({name_some(list(classes))}), but the model of '
                f'{self.config_name} has {num_classes}. Use the config that the checkpoint was trained with.'
            )

    def _check_weights(self, model: nn.Module, checkpoint: Mapping) -> None:
        weights = {
            key.removeprefix('module.'): value for key, value in checkpoint.get('state_dict', checkpoint).items()
        }
        check_classes(model, weights, self.checkpoint_name, get_classes(checkpoint.get('meta') or {}))
        expected = model.state_dict()
        wrong = [key for key, value in weights.items() if key in expected and expected[key].shape != value.shape]
        # Loading, which may rename weights of older versions, knows best what is missing.
        wrong = wrong or model.load_state_dict(weights, strict=False).missing_keys
        if wrong:
            raise InputError(
                f'{self.checkpoint_name} is not a checkpoint of {self.config_name}: these weights are missing or have '
                f'other shapes: {name_some(wrong)}. Use the config that the checkpoint was trained with.'
            )

    def _init_pipeline(self, cfg: Config | ConfigDict) -> Compose:
        # The place where DetInferencer looks for it, also if the dataset is wrapped in another.
        cfg.test_dataloader.dataset.pipeline = copy.deepcopy(get_test_pipeline_cfg(cfg))
        if self.min_image_size is not None:
            set_short_side(cfg.test_dataloader.dataset.pipeline, self.min_image_size)
        return super()._init_pipeline(cfg)

    def _init_visualizer(self, cfg: Config | ConfigDict) -> DetLocalVisualizer:
        defaults = dict(type='DetLocalVisualizer', alpha=0.5)
        cfg.visualizer = {**defaults, **cfg.get('visualizer', {}), 'vis_backends': None}
        return super()._init_visualizer(cfg)


def set_short_side(pipeline: Sequence[dict], size: int) -> None:
    """Change a test pipeline so that it resizes the short side of images to `size` pixels.

    The limit of the long side grows in proportion, and is at least in the proportion of COCO's configs.

    Raises:
        InputError: The pipeline does not resize.
    """
    steps = [step for step in pipeline if step['type'].endswith('Resize') and 'scale' in step]
    if not steps:
        raise InputError('min_image_size has no effect: the test pipeline has no Resize with a scale. Leave it out.')
    for step in steps:
        ratio = max(max(step['scale']) / min(step['scale']), COCO_ASPECT_RATIO)
        step['scale'] = (round(ratio * size), size)
