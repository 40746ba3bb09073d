"""Whether a checkpoint belongs to a model: the names of its weights, and what the model makes of them.

What weights mean is written into the metadata of the state dict when it is made, and compared when it is loaded. So it
is checked however a checkpoint is loaded: by MMEngine's runner, ``init_detector``, ``DetInferencer`` or by hand.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from embedmask_mmdet.errors import InputError, name_some

if TYPE_CHECKING:
    from embedmask_mmdet.models.detector import EmbedMask

META_KEY = 'embedmask'
CLASSES_KEY = 'embedmask_classes'
CLASS_WEIGHT = 'bbox_head.conv_cls.weight'
HEADS = ('bbox_head.', 'mask_head.', 'pixel_branch.', 'frame.')
# Settings that change what weights mean, but neither their names nor their shapes.
MEANINGS = (
    'frame.coord_scale',
    'frame.prior_margin',
    'bbox_head.strides',
    'bbox_head.norm_on_bbox',
    'bbox_head.margin_reduce_factor',
    'mask_head.stride',
)
# Names of version 0.1.
OLD_NAMES = {'bbox_head.position.scale': 'frame.scale'}


def describe_weights(model: EmbedMask) -> dict[str, Any]:
    """Say what a model makes of its weights, in terms of its config."""
    settings = {name: operator.attrgetter(name)(model) for name in MEANINGS}
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return {'frame.type': type(model.frame).__name__, **settings}


def rename_old_weights(state_dict: MutableMapping[str, Tensor], prefix: str = '') -> None:
    """Rename, in place, weights that had another name in an earlier version.

    Args:
        state_dict: Of a detector.
        prefix: Before each name.
    """
    for old, new in OLD_NAMES.items():
        if prefix + old in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)


def check_weights(
    model: EmbedMask,
    state_dict: Mapping[str, Tensor],
    meaning: Mapping[str, Any],
    source: str,
    classes: Sequence[str] = (),
) -> None:
    """Refuse weights that lack some of the heads', have other sizes, or another meaning.

    Args:
        model: To load into.
        state_dict: With the names of this version.
        meaning: From :func:`describe_weights` of the trained model; settings that are missing are not compared.
        source: Path of the checkpoint, or other words for it.
        classes: Names of the classes that the weights were trained on, if they are known.

    Raises:
        InputError: If the weights do not belong to the model.
    """
    _check_embed_dim(model, state_dict, source)
    check_classes(model, state_dict, source, classes)
    _check_sizes(model, state_dict, source)
    _check_names(model, state_dict, source)
    _check_meaning(model, meaning, source)


def check_classes(model: nn.Module, state_dict: Mapping[str, Tensor], source: str, classes: Sequence[str]) -> None:
    """Refuse weights that were trained on another number of classes.

    Args:
        model: To load into.
        state_dict: With the names of this version.
        source: Path of the checkpoint, or other words for it.
        classes: Names of the classes that the weights were trained on, if they are known.

    Raises:
        InputError: If the last layer has another number of classes.
    """
    weight, own = state_dict.get(CLASS_WEIGHT), model.state_dict().get(CLASS_WEIGHT)
    if weight is None or own is None or len(weight) == len(own):
        return
    names = f': {name_some(classes)}' if len(classes) == len(weight) else ''
    raise InputError(
        f'{source} was trained on {len(weight)} classes{names}; this config has {len(own)}, so its {CLASS_WEIGHT} does '
        f'not fit. Set model.bbox_head.num_classes={len(weight)} and the classes of the datasets to those of the '
        'checkpoint, or use another checkpoint; to train on other classes, start from it with load_from.'
    )


def _check_embed_dim(model: EmbedMask, state_dict: Mapping[str, Tensor], source: str) -> None:
    # MMEngine would leave these weights out with no more than a warning, and so those of the next two checks.
    for name in ('bbox_head.conv_embed.weight', 'mask_head.conv_embed.weight'):
        embed_dim = len(state_dict[name]) if name in state_dict else model.bbox_head.embed_dim
        if embed_dim != model.bbox_head.embed_dim:
            raise InputError(
                f'{source} has embed_dim={embed_dim} ({name}), the config has {model.bbox_head.embed_dim}. Set '
                f'model.bbox_head.embed_dim and model.mask_head.embed_dim to {embed_dim}, or use another checkpoint.'
            )


def _check_sizes(model: EmbedMask, state_dict: Mapping[str, Tensor], source: str) -> None:
    own = model.state_dict()
    wrong = [name for name in own if name in state_dict and state_dict[name].shape != own[name].shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f'{source} is not a checkpoint of this config: {name} has the size {tuple(state_dict[name].shape)}, here '
            f'{tuple(own[name].shape)} ({len(wrong)} weights differ). Use the checkpoint and the config that belong '
            'together.'
        )


def _check_names(model: EmbedMask, state_dict: Mapping[str, Tensor], source: str) -> None:
    wanted = {name for name, _ in model.named_parameters() if name.startswith(HEADS)}
    missing = sorted(wanted - state_dict.keys())
    if missing:
        raise InputError(
            f'{source} is not a checkpoint of this model: it lacks {len(missing)} of {len(wanted)} weights of the '
            f'heads ({name_some(missing)}). Use the checkpoint and the config that belong together; to start training '
            'from a part of the weights, set load_from in the config, with EmbedMaskCheckHook in custom_hooks.'
        )


def _check_meaning(model: EmbedMask, meaning: Mapping[str, Any], source: str) -> None:
    for name, here in describe_weights(model).items():
        there = meaning.get(name, here)
        if there != here:
            raise InputError(
                f'{source} was trained with model.{name}={there}, this config has {here}, so its weights mean '
                'something else. Use the checkpoint and the config that belong together.'
            )


def write_meaning(model: EmbedMask, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: dict) -> None:
    """Write what weights mean into their metadata: a hook on the ``state_dict`` of a detector."""
    local_metadata[META_KEY] = describe_weights(model)


def check_on_load(
    model: EmbedMask, state_dict: MutableMapping[str, Tensor], prefix: str, local_metadata: dict, *_
) -> None:
    """Rename old weights and check all: a hook before a detector loads a ``state_dict``."""
    rename_old_weights(state_dict, prefix)
    own = {name.removeprefix(prefix): weight for name, weight in state_dict.items() if name.startswith(prefix)}
    classes = local_metadata.get(CLASSES_KEY, ())
    check_weights(model, own, local_metadata.get(META_KEY, {}), 'the checkpoint', classes)
