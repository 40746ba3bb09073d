"""What ``torch.compile`` needs to be of use through MMEngine's option ``compile``."""

from __future__ import annotations

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class EmbedMaskCompileHook(Hook):
    """Keeps the optimizer out of what MMEngine's ``compile=True`` compiles, which is the whole training step.

    The tracer fails on the optimizer's parameter groups, which MMEngine makes of its own kind of dict, and would
    compile anew at each change of the learning rate. Does nothing where nothing is compiled.
    """

    def before_train(self, runner: Runner) -> None:
        """Let the tracer pass over the update of the weights."""
        if runner.cfg.get('compile'):
            runner.optim_wrapper.update_params = torch.compiler.disable(runner.optim_wrapper.update_params)
