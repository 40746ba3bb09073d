"""Training that computes something that is no number ends at once, with the loss and the images named."""

from __future__ import annotations

import math

import torch
from mmdet.registry import HOOKS
from mmdet.structures import SampleList
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from embedmask_mmdet.engine.checks import bare_model
from embedmask_mmdet.errors import name_some
from embedmask_mmdet.models import EmbedMask


def name_image(data_sample: object) -> str:
    """Name an image by its path or, without one, by its id."""
    return str(getattr(data_sample, 'img_path', None) or f'img_id {getattr(data_sample, "img_id", "unknown")}')


def suspects(model: EmbedMask, inputs: Tensor, data_samples: SampleList) -> list[str]:
    """Find the images that a finite model makes something of that is no finite number.

    Args:
        model: With finite weights.
        inputs: ``(B, 3, H, W)``, normalized.
        data_samples: Of each image.

    Returns:
        What is wrong with which image, in words.
    """
    broken = [not image.isfinite().all() for image in inputs]
    if any(broken):
        what = 'the pixels of {} are'
    else:
        with torch.no_grad():
            outs = model(inputs, mode='tensor')
        maps = [level for out in outs for level in (out if isinstance(out, list) else [out])]
        broken = [not all(level[i].isfinite().all() for level in maps) for i in range(len(inputs))]
        what = 'the predictions for {} are'
    return [f'{what.format(name_image(sample))} not finite' for sample, bad in zip(data_samples, broken) if bad]


@HOOKS.register_module()
class EmbedMaskFiniteLossHook(Hook):
    """Ends training with an error, before any weight is updated, when a loss is infinite or NaN.

    Checked at each iteration between forward and backward. FCOS's loss has to wait for the device there anyway, to
    count positives. Gradients are checked where they are clipped, and weights before they are saved.
    """

    def __init__(self) -> None:
        self._images: list[str] = []
        self._before: list[str] = []

    def before_train(self, runner: Runner) -> None:
        """Look at what the model's forward returns from now on."""
        # What it decides by numbers cannot be traced.
        check = torch.compiler.disable(self._check_losses) if runner.cfg.get('compile') else self._check_losses
        self._handle = bare_model(runner).register_forward_hook(check, with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        """Look no more."""
        self._handle.remove()

    def _check_losses(self, model: EmbedMask, args: tuple, kwargs: dict, losses: dict[str, Tensor]) -> None:
        if kwargs.get('mode') != 'loss':
            return
        self._before, self._images = self._images, [name_image(sample) for sample in kwargs['data_samples']]
        names = [name for name in losses if 'loss' in name]
        values = torch.stack([losses[name].detach().float().sum() for name in names])
        if values.isfinite().all():
            return
        broken = ', '.join(
            f'{name} is {value}' for name, value in zip(names, values.tolist()) if not math.isfinite(value)
        )
        raise FloatingPointError(f'{broken} on images {name_some(self._images)}: {self._explain(model, kwargs)}')

    def _explain(self, model: EmbedMask, kwargs: dict) -> str:
        weights = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
        if weights:
            return (
                f'{len(weights)} weights are no finite numbers ({name_some(weights)}), broken by the gradient of the '
                f'batch before (images {name_some(self._before)}) or by the checkpoint; lower the learning rate, or '
                'set optim_wrapper.clip_grad'
            )
        found = suspects(model, kwargs['inputs'], kwargs['data_samples'])
        return name_some(found) or 'each image alone looks right; lower the learning rate'

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None, **_) -> None:
        """Check the norm of the gradient if it was clipped; a loss scaler leaves out such updates by itself."""
        norm = runner.message_hub.log_scalars.get('train/grad_norm')
        if norm is None or hasattr(runner.optim_wrapper, 'loss_scaler') or math.isfinite(norm.current()):
            return
        raise FloatingPointError(
            f'the gradient of the losses on images {name_some(self._images)} is {norm.current()} at iteration '
            f'{runner.iter + 1}: lower the learning rate, and check the boxes and masks of these images'
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save no broken weights."""
        weights = checkpoint['state_dict'].items()
        broken = [name for name, weight in weights if weight.is_floating_point() and not weight.isfinite().all()]
        if broken:
            raise FloatingPointError(
                f'{len(broken)} weights are no finite numbers ({name_some(broken)}), broken by the gradient of images '
                f'{name_some(self._images)}: nothing was saved; resume from the checkpoint before with a lower '
                'learning rate, or set optim_wrapper.clip_grad'
            )
