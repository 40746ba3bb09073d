"""Weights to start a training from, of MMDetection's FCOS and other detectors as well as our own.

A neck may begin with another level than the one that the weights come from: level 0 is P2 in EmbedMask plus, and P3 in
FCOS. Then weights with the same name belong to different levels, and many of them have the same shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from embedmask_mmdet.engine.design import Design
from embedmask_mmdet.errors import name_some

BACKBONE = 'backbone.'
LATERAL, OUTPUT, SCALE = 'neck.lateral_convs', 'neck.fpn_convs', 'bbox_head.scales'
HEAD_LEVELS = (SCALE, 'bbox_head.margin_scales')
LEVEL = re.compile(rf'({"|".join(map(re.escape, (LATERAL, OUTPUT, *HEAD_LEVELS)))})\.(\d+)(\..+)')
# Weights that read or give something else if a setting of FCOS's head differs.
DEPEND_ON = {
    'norm_on_bbox': ('bbox_head.conv_reg.', 'bbox_head.scales.'),
    'centerness_on_reg': ('bbox_head.conv_centerness.',),
}
CLASSES = 'bbox_head.conv_cls'
# Names of MMDetection 1.
OLD_FCOS_NAMES = {f'bbox_head.fcos_{part}.': f'bbox_head.conv_{part}.' for part in ('cls', 'reg', 'centerness')}
PARTS = {
    'backbone': (BACKBONE,),
    'neck': ('neck.',),
    'towers': ('bbox_head.cls_convs.', 'bbox_head.reg_convs.'),
    'boxes and centerness': ('bbox_head.conv_reg.', 'bbox_head.conv_centerness.', 'bbox_head.scales.'),
    'classes': ('bbox_head.conv_cls.',),
    'embeddings and margins': (
        'bbox_head.conv_embed.',
        'bbox_head.conv_margin.',
        'bbox_head.margin_scales.',
        'mask_head.conv_embed.',
        'frame.',
    ),
    'pixel tower': ('pixel_branch.', 'mask_head.mask_convs.'),
}
OTHER_PARTS = 'other parts'
# Means that differ less than this fraction of the standard deviation, or 3 gray values, are alike.
SIMILAR, SIMILAR_VALUES = 0.05, 3.0


@dataclass
class Transfer:
    """What becomes of weights.

    Attributes:
        taken: Weights of the model that come from the checkpoint.
        anew: Names of the model's other weights.
        unfit: Names of the checkpoint's weights that have a place in the model but do not fit, with the reason.
        unused: Names of the checkpoint's weights that have no place in the model.
    """

    taken: dict[str, Tensor] = field(default_factory=dict)
    anew: list[str] = field(default_factory=list)
    unfit: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def transfer_weights(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: Design, target: Design
) -> Transfer:
    """Find the weights of a checkpoint that a model can start from, under the names that they have in the model.

    Args:
        weights: Of the checkpoint, by name.
        own: Of the model, by name.
        source: What is known about the model of the checkpoint.
        target: The same about the model.
    """
    weights = {_replace_prefix(name): weight for name, weight in weights.items()}
    is_same_backbone = has_same_backbone(weights, own)
    levels = _Levels(weights, own, find_neck_shift(weights, own, source, target))
    transfer, new_names = Transfer(), {}
    for name, weight in weights.items():
        new_name, reason = levels.rename(name)
        if new_name not in own:
            transfer.unused.append(name)
        elif name.startswith(BACKBONE) and not is_same_backbone:
            transfer.unfit[name] = 'another backbone'
        elif reason := reason or _find_reason(new_name, weight, own[new_name], source, target):
            transfer.unfit[name] = reason
        else:
            new_names[name] = new_name
    # A bias means nothing without its weight.
    broken = {name.rpartition('.')[0]: reason for name, reason in transfer.unfit.items()}
    for name, new_name in new_names.items():
        layer = name.rpartition('.')[0]
        if layer in broken:
            transfer.unfit[name] = broken[layer]
        else:
            transfer.taken[new_name] = weights[name]
    transfer.anew = [name for name in own if name not in transfer.taken]
    return transfer


def _replace_prefix(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in OLD_FCOS_NAMES.items() if name.startswith(old)), name)


def has_same_backbone(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Return whether all weights that both backbones have are of the same size.

    A part of another backbone would compute features that nothing was trained on.
    """
    shared = [name for name in weights if name.startswith(BACKBONE) and name in own]
    return all(weights[name].shape == own[name].shape for name in shared)


def find_neck_shift(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: Design, target: Design
) -> int | None:
    """Find the level of the model's neck that is the first one of the checkpoint's; None if that is unknown.

    With the same backbone, channels show it. Otherwise the checkpoint's config does, if it is there.
    """
    if has_same_backbone(weights, own):
        shift = find_shift(read_lateral_channels(weights), read_lateral_channels(own))
        if shift is not None:
            return shift
    if source.neck_stride and target.neck_stride:
        return round(math.log2(source.neck_stride / target.neck_stride))
    return None


def _find_reason(name: str, weight: Tensor, own: Tensor, source: Design, target: Design) -> str | None:
    """Say why a weight does not fit; None if it does."""
    if name.startswith(f'{CLASSES}.'):
        if len(weight) != len(own):
            return f'{len(weight)} classes, {len(own)} here'
        if source.classes and target.classes and source.classes != target.classes:
            return f'classes {name_some(source.classes)}, here {name_some(target.classes)}'
    if weight.shape != own.shape:
        return 'other sizes'
    for setting, prefixes in DEPEND_ON.items():
        value = source.head.get(setting)
        if name.startswith(prefixes) and value is not None and value != target.head[setting]:
            return f'{setting}={value}, {target.head[setting]} here'
    return None


class _Levels:
    """Which level of the model each level of the checkpoint is.

    Args:
        weights: Of the checkpoint.
        own: Of the model.
        neck_shift: From :func:`find_neck_shift`.
    """

    def __init__(self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], neck_shift: int | None) -> None:
        self.num_laterals, self.own_num_laterals = count_levels(weights, LATERAL), count_levels(own, LATERAL)
        self.neck_shift = neck_shift
        # Heads read the coarsest levels of the neck.
        first, own_first = (count_levels(names, OUTPUT) - count_levels(names, SCALE) for names in (weights, own))
        self.head_shift = first - own_first + (neck_shift or 0) if self.num_laterals else 0

    def rename(self, name: str) -> tuple[str, str | None]:
        """Return the name that a weight has in the model, and why it does not fit there if the level says so."""
        match = LEVEL.fullmatch(name)
        if not match:
            return name, None
        layer, level, rest = match[1], int(match[2]), match[3]
        if layer in HEAD_LEVELS:
            return f'{layer}.{level + self.head_shift}{rest}', None
        if self.neck_shift is None:
            return name, 'level of the neck unknown'
        new_level = level + self.neck_shift
        # Beyond the levels of the backbone, convolutions halve the resolution.
        is_other_kind = layer == OUTPUT and (level < self.num_laterals) != (new_level < self.own_num_laterals)
        return f'{layer}.{new_level}{rest}', 'computes another level' if is_other_kind else None


def read_lateral_channels(weights: Mapping[str, Tensor]) -> list[int]:
    """Return the input channels of a neck's lateral convolutions, the finest level first."""
    channels = {
        int(match[2]): weight.shape[1]
        for name, weight in weights.items()
        if (match := LEVEL.fullmatch(name)) and match[1] == LATERAL and weight.dim() == 4
    }
    return [channels[level] for level in sorted(channels)]


def count_levels(names: Iterable[str], layer: str) -> int:
    """Count the levels of a layer."""
    return len({match[2] for name in names if (match := LEVEL.fullmatch(name)) and match[1] == layer})


def find_shift(channels: Sequence[int], own_channels: Sequence[int]) -> int | None:
    """Find the one place at which one list of channels is contained in the other.

    Args:
        channels: Of the levels of a checkpoint's backbone.
        own_channels: Of the levels of the model's.

    Returns:
        Index of the checkpoint's first level in the model, below 0 if the model lacks it. None if the lists are those
        of different backbones, or fit in several places.
    """
    short, long = sorted((channels, own_channels), key=len)
    starts = [i for i in range(len(long) - len(short) + 1) if list(long[i : i + len(short)]) == list(short)]
    if not short or len(starts) != 1:
        return None
    return starts[0] if short is channels else -starts[0]


def describe_transfer(transfer: Transfer, path: str, source: Design) -> str:
    """Say in at most five lines what is taken, what begins anew, what does not fit and what is not used.

    Args:
        transfer: From :func:`transfer_weights`.
        path: Of the checkpoint.
        source: What is known about its model.
    """
    total = len(transfer.taken) + len(transfer.anew)
    of = f' (of {source.detector})' if source.detector else ', which does not say how it was trained,'
    lines = [f'{path}{of} has {len(transfer.taken)} of the {total} weights of this model.']
    lines += [f'  taken: {_count_by_part(transfer.taken)}', f'  begin anew: {_count_by_part(transfer.anew)}']
    if transfer.unfit:
        reasons = '; '.join(sorted(set(transfer.unfit.values())))
        lines.append(f'  do not fit: {_count_by_part(transfer.unfit)} ({reasons})')
    if transfer.unused:
        lines.append(f'  not used: {_count_by_part(transfer.unused)}')
    return '\n'.join(lines)


def _count_by_part(names: Iterable[str]) -> str:
    counts = dict.fromkeys([*PARTS, OTHER_PARTS], 0)
    for name in names:
        counts[next((part for part, prefixes in PARTS.items() if name.startswith(prefixes)), OTHER_PARTS)] += 1
    return ', '.join(f'{part} {count}' for part, count in counts.items() if count) or 'nothing'


def explain_other_inputs(path: str, source: Design, target: Design) -> str | None:
    """Warn if the backbone of a checkpoint expects another normalization or style; None if it does not.

    Args:
        path: Of the checkpoint.
        source: What is known about its model.
        target: The same about the model that starts from it.
    """
    different = [name for name, value in source.inputs.items() if not _is_similar(name, value, target.inputs)]
    if not different:
        return None
    seen = ', '.join(f'{name}={source.inputs[name]}' for name in different)
    here = ', '.join(f'{name}={target.inputs.get(name)}' for name in different)
    options = ' '.join(f"'model.{name}={source.inputs[name]}'".replace(', ', ',') for name in different)
    return (
        f'{path} was trained with {seen}; this config has {here}. Its backbone expects the input that it was trained '
        f'with: add --cfg-options {options}.'
    )


def _is_similar(name: str, value: object, target: Mapping[str, object]) -> bool:
    if name not in target:  # another kind of backbone or preprocessor, whose weights do not fit anyway
        return True
    if name == 'data_preprocessor.mean':
        tolerances = [max(SIMILAR_VALUES, SIMILAR * std) for std in target['data_preprocessor.std']]
    elif name == 'data_preprocessor.std':
        tolerances = [SIMILAR * std for std in target[name]]
    else:
        return value == target[name]
    return all(abs(a - b) <= tolerance for a, b, tolerance in zip(value, target[name], tolerances))
