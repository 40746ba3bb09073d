"""The hook that makes tests faster."""

from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from embedmask_mmdet.engine.bare_model import bare_model
from embedmask_mmdet.inference.speed import speed_up


@HOOKS.register_module()
class EmbedMaskSpeedHook(Hook):
    """Folds batch normalization and reorders channels before a test, see :func:`speed_up`.

    Validation during training is left alone. Scores and masks change by rounding.
    """

    # After the checkpoint is loaded, before the first image.
    priority = 'VERY_LOW'

    def before_test_epoch(self, runner: Runner) -> None:
        """Change the model."""
        speed_up(bare_model(runner))
