"""Convert checkpoints between the names of EmbedMask's authors and ours.

Nothing but tensors and plain containers is read from a file, so that it cannot run code.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embedmask_mmdet.engine.checkpoint import explain_failure
from embedmask_mmdet.errors import CheckpointError, InputError, name_some
from embedmask_mmdet.fileio import write_atomically
from embedmask_mmdet.models.frames.location_frame import NUM_SPATIAL
from embedmask_mmdet.models.weights import rename_old_weights

CONFIG_DIR = Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = {50: CONFIG_DIR / 'embedmask_r50_1x_coco.py', 101: CONFIG_DIR / 'embedmask_r101_ms-3x_coco.py'}

HEAD = 'rpn.head'
TOWERS = {'cls': 'cls_tower', 'reg': 'bbox_tower', 'mask': 'mask_tower'}
EMBEDDINGS = {'bbox_head.conv_embed': 'proposal', 'mask_head.conv_embed': 'pixel'}
# Regular expressions of our names, and the authors' names. The authors number FPN maps from C2, and layers in a tower.
RENAMES: dict[str, str | Callable[[re.Match], str]] = {
    r'backbone\.(conv1|bn1)': r'backbone.body.stem.\1',
    r'backbone\.(layer\d)': r'backbone.body.\1',
    r'neck\.lateral_convs\.(\d)\.conv': lambda m: f'backbone.fpn.fpn_inner{int(m[1]) + 2}',
    r'neck\.fpn_convs\.([0-2])\.conv': lambda m: f'backbone.fpn.fpn_layer{int(m[1]) + 2}',
    r'neck\.fpn_convs\.([34])\.conv': lambda m: f'backbone.fpn.top_blocks.p{int(m[1]) + 3}',
    r'\w+_head\.(cls|reg|mask)_convs\.(\d)\.conv': lambda m: f'{HEAD}.{TOWERS[m[1]]}.{3 * int(m[2])}',
    r'\w+_head\.(cls|reg|mask)_convs\.(\d)\.gn': lambda m: f'{HEAD}.{TOWERS[m[1]]}.{3 * int(m[2]) + 1}',
    r'bbox_head\.conv_cls': f'{HEAD}.cls_logits',
    r'bbox_head\.conv_reg': f'{HEAD}.bbox_pred',
    r'bbox_head\.conv_centerness': f'{HEAD}.centerness',
    r'bbox_head\.conv_margin': f'{HEAD}.proposal_margin_pred',
    r'bbox_head\.(scales|margin_scales)': rf'{HEAD}.\1',
    r'frame': f'{HEAD}.position_scale',
}


def list_authors_weights(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the authors' weights that correspond to one of ours.

    Concatenated along their first dimension, they have the values of ours. The authors have nothing like the counters
    of batch normalization: for these, the result is empty.

    Args:
        name: Our name.
        shape: Our shape.

    Raises:
        InputError: The authors have no such weight.
    """
    owner, leaf = name.rsplit('.', 1)
    if leaf == 'num_batches_tracked':
        return {}
    if owner in EMBEDDINGS:
        channels, *kernel = shape
        spatial, other = (f'{HEAD}.{EMBEDDINGS[owner]}_{part}_embed_pred.{leaf}' for part in ('spatial', 'other'))
        return {spatial: (NUM_SPATIAL, *kernel), other: (channels - NUM_SPATIAL, *kernel)}
    for pattern, authors_name in RENAMES.items():
        renamed, num_matches = re.subn(rf'^{pattern}\b', authors_name, name)
        if num_matches:
            return {renamed: shape or (1,)}
    raise InputError(f"cannot be converted: the authors' network has no weight like {name} of the config")


def map_weights(model: nn.Module) -> dict[str, dict[str, tuple[int, ...]]]:
    """Apply :func:`list_authors_weights` to all weights of a model."""
    return {name: list_authors_weights(name, tuple(weight.shape)) for name, weight in model.state_dict().items()}


def find_variance_offsets(model: nn.Module) -> dict[str, float]:
    """Return the ``eps`` of batch normalization by the name of its variance.

    MMDetection divides by ``sqrt(variance + eps)``, the authors by ``sqrt(variance)``: theirs is ours plus ``eps``.
    """
    return {f'{name}.running_var': bn.eps for name, bn in model.named_modules() if isinstance(bn, _BatchNorm)}


def shift(weight: Tensor, offset: float) -> Tensor:
    """Add in float64, so that converting a variance back restores it exactly."""
    return (weight.double() + offset).to(weight.dtype)


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the names and shapes of a checkpoint with the expected ones.

    Args:
        weights: Weights of the checkpoint.
        shapes: Expected shapes by name.

    Raises:
        InputError: A name is missing or unknown, or a shape differs.
    """
    missing, unknown = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    problems = []
    if missing:
        problems.append(f'lacks {len(missing)} of {len(shapes)} weights: {name_some(missing)}')
    if unknown:
        problems.append(f'has {len(unknown)} unknown weights: {name_some(unknown)}')
    if problems:
        raise InputError('; it '.join(problems))
    wrong = [
        f'{name} of shape {tuple(weights[name].shape)} instead of {shape}'
        for name, shape in shapes.items()
        if tuple(weights[name].shape) != shape
    ]
    if wrong:
        raise InputError(f'has {name_some(wrong)}. If it was trained for other classes, pass its --config')


def to_mmdet(authors_weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert the authors' weights to ours.

    Args:
        authors_weights: All weights that `model` needs, under the authors' names.
        model: A model with our names and shapes; may be on the meta device.

    Returns:
        The state dict with which `model` computes the same as the authors' network.

    Raises:
        InputError: A name is missing or unknown, or a shape differs.
    """
    parts, offsets = map_weights(model), find_variance_offsets(model)
    check_weights(authors_weights, {name: shape for names in parts.values() for name, shape in names.items()})
    # With the metadata that say what the weights mean.
    converted = model.state_dict()
    for name, like in converted.items():
        if parts[name]:
            weight = torch.cat([authors_weights[part] for part in parts[name]]).reshape(like.shape)
            converted[name] = shift(weight, -offsets[name]) if name in offsets else weight
        else:
            converted[name] = torch.zeros(like.shape, dtype=like.dtype)
    return converted


def to_authors(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert our weights to the authors'; the reverse of :func:`to_mmdet`, with the same arguments and errors."""
    offsets = find_variance_offsets(model)
    check_weights(weights, {name: tuple(weight.shape) for name, weight in model.state_dict().items()})
    converted = {}
    for name, parts in map_weights(model).items():
        weight = shift(weights[name], offsets[name]) if name in offsets else weights[name]
        pieces = weight.reshape(-1, *weight.shape[1:]).split([shape[0] for shape in parts.values()]) if parts else ()
        # Saving a view would save the complete tensor that it belongs to.
        converted.update((part, piece.clone()) for part, piece in zip(parts, pieces))
    return converted


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read only the weights of a checkpoint, without the prefix that training on several GPUs adds.

    Args:
        path: A file that the authors' code, MMEngine or ``torch.save(model.state_dict())`` wrote.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: The file is not a checkpoint, is damaged, has no weights, or contains classes that the safe
            unpickler refuses.
    """
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from error
    except Exception as error:  # the unpickler raises nearly any error if the file is not a pickle
        raise CheckpointError(explain_failure(path, error)) from error
    weights = checkpoint
    if isinstance(checkpoint, Mapping):
        weights = checkpoint.get('model', checkpoint.get('state_dict', checkpoint))
    items = weights.items() if isinstance(weights, Mapping) else ()
    if not items or not all(isinstance(name, str) and isinstance(weight, Tensor) for name, weight in items):
        raise CheckpointError(
            f'{path} has no weights. Pass a checkpoint with named tensors under "model" (the authors\'), under '
            '"state_dict" (ours), or at the top level.'
        )
    return {name.removeprefix('module.'): weight for name, weight in items}


def check_names(weights: Mapping[str, Tensor], reverse: bool) -> None:
    """Check that a checkpoint does not have the names that it should be converted to.

    Raises:
        InputError: It has these names.
    """
    if reverse and any(name.startswith(f'{HEAD}.') for name in weights):
        raise InputError("has the authors' names already. Leave out --reverse to convert it to ours")
    if not reverse and any(name.startswith('bbox_head.') for name in weights):
        raise InputError(
            "has MMDetection's names already, and configs load it as it is. Add --reverse to convert it to the authors'"
        )


def check_version(authors_weights: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint is of the supported version of the authors' code.

    Raises:
        InputError: It is of FCOS, or of the older EmbedMask with one margin for each instance.
    """
    margin = authors_weights.get(f'{HEAD}.proposal_margin_pred.weight')
    if margin is not None and margin.shape[:1] == (1,):
        raise InputError(
            "is of the older version, with 8 channels and one margin for each instance. The authors' current version "
            'has 16 channels with a margin for each. Use a checkpoint of the current version, or train a model'
        )
    if f'{HEAD}.cls_logits.weight' in authors_weights and not any('embed_pred' in name for name in authors_weights):
        raise InputError('is one of FCOS, which detects boxes and has no embeddings for masks')


def build_on_meta(cfg: Config) -> nn.Module:
    """Build the detector of a config without memory for its weights."""
    init_default_scope('mmdet')
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def make_meta(cfg: Config) -> dict:
    """Return what MMDetection reads from a checkpoint besides its weights: the class names and the config."""
    dataset = DATASETS.build({**cfg.val_dataloader.dataset, 'lazy_init': True})
    return dict(dataset_meta=dataset.metainfo, cfg=cfg.pretty_text)


def convert(src: Path, dst: Path, config: Path | None = None, reverse: bool = False) -> Path:
    """Convert a checkpoint file.

    Args:
        src: Checkpoint to read.
        dst: Checkpoint to write. Its folder is made, and an existing file is replaced.
        config: Config that the weights must fit; by default that of the authors' R50 or R101, recognized by weights.
        reverse: Whether to convert from our names to the authors'.

    Returns:
        The config.

    Raises:
        CheckpointError: `src` cannot be read.
        InputError: `src` does not fit the config, or `dst` cannot be written.
    """
    weights = load_weights(src)
    rename_old_weights(weights)
    try:
        check_names(weights, reverse)
        check_version(weights)
        config = config or CONFIGS[101 if any('layer3.6.' in name for name in weights) else 50]
        cfg = Config.fromfile(config)
        model = build_on_meta(cfg)
        if reverse:
            checkpoint = dict(model=to_authors(weights, model))
        else:
            checkpoint = dict(meta=make_meta(cfg), state_dict=to_mmdet(weights, model))
    except InputError as error:
        raise InputError(f'the checkpoint {src} {error}') from None
    content = io.BytesIO()
    torch.save(checkpoint, content)
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(dst, content.getvalue())
    except OSError as error:
        raise InputError(f'{dst} cannot be written: {error.strerror or error}') from error
    return config
