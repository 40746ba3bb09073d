"""The hook that makes MMEngine's option ``compile`` usable for training."""

from __future__ import annotations

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class EmbedMaskCompileHook(Hook):
    """Excludes the optimizer from compilation, because MMEngine's ``compile=True`` compiles the whole training step.

    ``torch.compile`` fails on the parameter groups of MMEngine's optimizers, and would recompile whenever the learning
    rate changes. The hook does nothing if the config does not set ``compile``.
    """

    def before_train(self, runner: Runner) -> None:
        """Exclude the update of the weights from compilation."""
        if runner.cfg.get('compile'):
            runner.optim_wrapper.update_params = torch.compiler.disable(runner.optim_wrapper.update_params)
