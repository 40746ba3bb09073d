"""The detector that a runner trains or tests."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from embedmask_mmdet.models import EmbedMask


def bare_model(runner: Runner) -> EmbedMask:
    """Return the detector inside the wrappers for distributed training and test-time augmentation."""
    model: nn.Module = runner.model
    while is_model_wrapper(model) or not isinstance(model, EmbedMask):
        model = model.module
    return model
