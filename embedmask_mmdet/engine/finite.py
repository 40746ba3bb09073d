"""Stop training with an error that names the loss and the images when a number becomes NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from mmdet.registry import HOOKS
from mmdet.structures import SampleList
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from embedmask_mmdet.engine.bare_model import bare_model
from embedmask_mmdet.errors import name_some
from embedmask_mmdet.models import EmbedMask


def name_image(data_sample: object) -> str:
    """Name an image by its path or, if it has none, by its id."""
    return str(getattr(data_sample, 'img_path', None) or f'img_id {getattr(data_sample, "img_id", "unknown")}')


def name_images(data_samples: SampleList) -> str:
    """Name the first images of a batch."""
    return name_some([name_image(data_sample) for data_sample in data_samples])


def iterate_tensors(outputs: Tensor | list | tuple) -> Iterator[Tensor]:
    """Yield the tensors of nested lists and tuples."""
    if isinstance(outputs, Tensor):
        yield outputs
        return
    for output in outputs:
        yield from iterate_tensors(output)


def find_broken_weights(weights: Mapping[str, Tensor]) -> list[str]:
    """List the names of the weights that are NaN or infinite."""
    return [name for name, weight in weights.items() if not weight.isfinite().all()]


def find_broken_images(model: EmbedMask, inputs: Tensor, data_samples: SampleList) -> str:
    """Find the images whose pixels are NaN or infinite or, if there are none, those whose predictions are.

    Args:
        model: A model with finite weights.
        inputs: Normalized images ``(B, 3, H, W)``.
        data_samples: Sample of each image.

    Returns:
        What is wrong, and with which images. Empty if pixels and predictions are finite.
    """
    what, is_broken = 'pixels', [not image.isfinite().all() for image in inputs]
    if not any(is_broken):
        with torch.no_grad():
            maps = list(iterate_tensors(model(inputs, mode='tensor')))
        what, is_broken = 'predictions', [not all(m[i].isfinite().all() for m in maps) for i in range(len(inputs))]
    broken = [sample for sample, broken in zip(data_samples, is_broken) if broken]
    return f'the {what} of {name_images(broken)} are NaN or infinite' if broken else ''


@HOOKS.register_module()
class EmbedMaskFiniteLossHook(Hook):
    """Stops training with an error if a loss, a clipped gradient or a weight to save becomes NaN or infinite.

    Losses are checked in each iteration before the backward pass, where FCOS waits for the device anyway to count
    positive locations. So the error comes before the weights are updated.
    """

    def __init__(self) -> None:
        # Broken weights show up in the next loss or in the checkpoint, where only the current batch is known.
        self._last_images = 'unknown'

    def before_train(self, runner: Runner) -> None:
        """Check what the model's forward returns from now on."""
        # torch.compile cannot trace a branch on a tensor's values.
        check = torch.compiler.disable(self._check_losses) if runner.cfg.get('compile') else self._check_losses
        self._handle = bare_model(runner).register_forward_hook(check, with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        """Remove the check."""
        self._handle.remove()

    def _check_losses(self, model: EmbedMask, args: tuple, kwargs: dict, losses: dict[str, Tensor]) -> None:
        if kwargs.get('mode') != 'loss':
            return
        names = [name for name in losses if 'loss' in name]
        values = torch.stack([losses[name].detach().float().sum() for name in names])
        if values.isfinite().all():
            return
        broken = [f'{name} is {value}' for name, value in zip(names, values.tolist()) if not math.isfinite(value)]
        cause = self._find_cause(model, kwargs['inputs'], kwargs['data_samples'])
        raise FloatingPointError(f'{", ".join(broken)} on images {name_images(kwargs["data_samples"])}: {cause}')

    def _find_cause(self, model: EmbedMask, inputs: Tensor, data_samples: SampleList) -> str:
        weights = find_broken_weights(dict(model.named_parameters()))
        if weights:
            return (
                f'{len(weights)} weights are NaN or infinite ({name_some(weights)}), caused by the gradient of the '
                f'previous batch (images {self._last_images}) or by the checkpoint. Lower the learning rate, or set '
                'optim_wrapper.clip_grad.'
            )
        broken = find_broken_images(model, inputs, data_samples)
        if broken:
            return f'{broken}. Check these images and their annotations, or lower the learning rate.'
        return 'pixels, weights and predictions are finite. Lower the learning rate, or check the annotations.'

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None, **_) -> None:
        """Check the norm of the gradient if it was clipped."""
        self._last_images = name_images(data_batch['data_samples'])
        norm = runner.message_hub.log_scalars.get('train/grad_norm')
        # A loss scaler skips updates with infinite gradients by itself.
        if norm is None or hasattr(runner.optim_wrapper, 'loss_scaler') or math.isfinite(norm.current()):
            return
        raise FloatingPointError(
            f'The gradient of the losses on images {self._last_images} is {norm.current()} in iteration '
            f'{runner.iter + 1}. Lower the learning rate, and check the boxes and masks of these images.'
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save broken weights."""
        weights = find_broken_weights(checkpoint['state_dict'])
        if weights:
            raise FloatingPointError(
                f'{len(weights)} weights are NaN or infinite ({name_some(weights)}), caused by the gradient of the '
                f'images {self._last_images}, so no checkpoint was saved. Resume from the previous one with a lower '
                'learning rate, or set optim_wrapper.clip_grad.'
            )
