"""What a runner does with a checkpoint before the model loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.runner import BaseLoop, Runner
from torch import Tensor

from embedmask_mmdet.engine.design import describe_model, get_classes, read_design
from embedmask_mmdet.engine.transfer import describe_transfer, explain_other_inputs, transfer_weights
from embedmask_mmdet.errors import InputError, name_some
from embedmask_mmdet.models import EmbedMask
from embedmask_mmdet.models.weights import META_KEY, OLD_NAMES, check_weights, rename_old_weights


def prepare_checkpoint(runner: Runner, model: EmbedMask, checkpoint: dict) -> None:
    """Check a checkpoint, and change it in place so that the model can load it.

    To test or to resume, the weights must be complete and mean the same. To start training from them (``load_from``), a
    part is enough, also of another detector such as FCOS; the other weights begin anew.

    Args:
        runner: That loads it.
        model: To load into.
        checkpoint: As MMEngine reads it: with ``state_dict``, or the weights themselves.

    Raises:
        InputError: If the weights do not belong to the model.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    for name in [name for name in weights if name.startswith('module.')]:
        weights[name.removeprefix('module.')] = weights.pop(name)
    if runner._resume:
        restore_optimizer_order(model, checkpoint)
    rename_old_weights(weights)
    # EMAHook exchanges both by name.
    rename_old_weights(checkpoint.get('ema_state_dict', {}), prefix='module.')
    check_overlap(model, weights, runner._load_from)
    if runner._resume or not isinstance(runner._train_loop, BaseLoop):
        check_complete(runner, model, weights, get_classes(checkpoint.get('meta') or {}))
    else:
        start_from(runner, model, checkpoint)


def check_overlap(model: EmbedMask, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse a checkpoint that has no weight of the model.

    Args:
        model: To load into.
        weights: By name.
        source: Path of the checkpoint.

    Raises:
        InputError: If no name is the same.
    """
    if not model.state_dict().keys() & weights.keys():
        raise InputError(
            f'{source} is not a checkpoint of this model: none of its weights has a name of this config, it has '
            f'{name_some(sorted(weights))}. Use the checkpoint and the config that belong together.'
        )


def check_complete(runner: Runner, model: EmbedMask, weights: Mapping[str, Tensor], classes: Sequence[str]) -> None:
    """Refuse a checkpoint that lacks weights or whose weights have other sizes or mean something else.

    Args:
        runner: That loads it.
        model: To load into.
        weights: By name.
        classes: That the weights were trained on; empty if they are unknown.

    Raises:
        InputError: If the weights do not belong to the model.
    """
    meaning = getattr(weights, '_metadata', {}).get('', {}).get(META_KEY, {})
    check_weights(model, weights, meaning, runner._load_from, classes)
    missing = sorted(model.state_dict().keys() - weights.keys())
    if missing:
        raise InputError(
            f'{runner._load_from} is not a checkpoint of this config: it lacks {len(missing)} weights '
            f'({name_some(missing)}). Use the checkpoint and the config that belong together.'
        )
    if not meaning:
        runner.logger.warning(
            f'{runner._load_from} does not say which settings its weights were trained with (written before version '
            '0.2), so they are not compared with those of this config.'
        )


def start_from(runner: Runner, model: EmbedMask, checkpoint: dict[str, Any]) -> None:
    """Replace, in place, the weights of a checkpoint by those that training starts from, and say which are taken.

    Args:
        runner: That trains the model.
        model: To load into.
        checkpoint: As MMEngine reads it.
    """
    weights, own = checkpoint.get('state_dict', checkpoint), model.state_dict()
    source = read_design(checkpoint)
    target = describe_model(model, getattr(runner.train_dataloader.dataset, 'metainfo', {}).get('classes', ()))
    weights_only = {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}
    transfer = transfer_weights(weights_only, own, source, target)
    runner.logger.info(describe_transfer(transfer, runner._load_from, source))
    if warning := explain_other_inputs(runner._load_from, source, target):
        runner.logger.warning(warning)
    weights.clear()
    weights.update({**own, **transfer.taken})
    # Training adapts the weights to what this config makes of them.
    getattr(weights, '_metadata', {}).get('', {}).pop(META_KEY, None)


def restore_optimizer_order(model: EmbedMask, checkpoint: dict[str, Any]) -> None:
    """Bring, in place, the optimizer's state of a checkpoint of version 0.1 into the order of the parameters of today.

    There the scale of the frame was a parameter of the box head; today it is the last one of the detector.

    Args:
        model: To load into.
        checkpoint: Of a training, with the names of its version.
    """
    (old_name,) = OLD_NAMES
    parameters = dict(model.named_parameters())
    names = [name for name in checkpoint['state_dict'] if OLD_NAMES.get(name, name) in parameters]
    if old_name not in names or 'param_groups' not in checkpoint.get('optimizer', {}):
        return
    ordered = checkpoint['optimizer']['param_groups']
    if len(ordered) == 1:
        ordered = ordered[0]['params']
    else:  # With paramwise_cfg, MMEngine makes one group for each parameter that is not frozen.
        names = [name for name in names if parameters[OLD_NAMES.get(name, name)].requires_grad]
    ordered.append(ordered.pop(names.index(old_name)))
