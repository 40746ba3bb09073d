"""The hook that shows what the model computes while it is being trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from embedmask_mmdet.engine.bare_model import bare_model
from embedmask_mmdet.explain import Explanation, explain_sample, keep_embeddings


def to_image(inputs: Tensor, img_shape: tuple[int, int]) -> np.ndarray:
    """Convert an image of a batch, ``(3, H, W)`` from 0 to 255, to ``(h, w, 3)`` uint8 without its padding."""
    height, width = img_shape
    return inputs[:, :height, :width].permute(1, 2, 0).clamp(0, 255).byte().cpu().numpy()


@HOOKS.register_module()
class EmbedMaskExplainHook(Hook):
    """Adds pictures of embeddings, margins, probabilities and masks to the visualizer's backends at each validation.

    They show the first images of the validation dataset. These are detected once more, so results and metrics are those
    of a run without the hook.

    Args:
        num_images: Number of images.
        num_detections: Number of detections to explain of each image at most, the best ones.
        score_thr: Lowest score of a detection that is shown. Scores are low at the start of training.
    """

    def __init__(self, num_images: int = 2, num_detections: int = 2, score_thr: float = 0.05) -> None:
        self.num_images = num_images
        self.num_detections = num_detections
        self.score_thr = score_thr
        self._num_drawn = 0

    def before_val_epoch(self, runner: Runner) -> None:
        """Begin with the first image again."""
        self._num_drawn = 0

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw the images of a batch until there are enough."""
        if not is_main_process():
            return
        left = self.num_images - self._num_drawn
        for inputs, sample in list(zip(data_batch['inputs'], data_batch['data_samples']))[:left]:
            picture = self._explain(runner, inputs, sample).draw()
            runner.visualizer.add_image(f'explained_{self._num_drawn}', picture, step=runner.iter)
            self._num_drawn += 1

    def _explain(self, runner: Runner, inputs: Tensor, sample: DetDataSample) -> Explanation:
        model = bare_model(runner)
        # A sample of its own, because results are written into it.
        data = dict(inputs=[inputs], data_samples=[DetDataSample(metainfo=sample.metainfo)])
        with keep_embeddings(model):
            (result,) = model.test_step(data)
        return explain_sample(
            model,
            to_image(inputs, sample.img_shape[:2]),
            result,
            runner.val_dataloader.dataset.metainfo['classes'],
            score_thr=self.score_thr,
            max_detections=self.num_detections,
        )
