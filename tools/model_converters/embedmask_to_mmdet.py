"""Turn a checkpoint of EmbedMask's authors into one that this project's configs load, or back with --reverse.

ResNet-50 and ResNet-101 are told apart by their weights. Optimizer and scheduler are left behind. Nothing but tensors
and plain containers is read from the file, so it can run no code.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / 'tools'))

from run_installed import check_checkpoint, check_config, fail, require_mmdet

require_mmdet()

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embedmask_mmdet.engine.checkpoint import explain_failure
from embedmask_mmdet.engine.resume import AtomicBackend
from embedmask_mmdet.errors import CheckpointError, name_some
from embedmask_mmdet.models.frames.location_frame import NUM_SPATIAL

CONFIGS = {50: ROOT / 'configs' / 'embedmask_r50_1x_coco.py', 101: ROOT / 'configs' / 'embedmask_r101_ms-3x_coco.py'}

HEAD = 'rpn.head'
TOWERS = {'cls': 'cls_tower', 'reg': 'bbox_tower', 'mask': 'mask_tower'}
EMBEDDINGS = {'bbox_head.conv_embed': 'proposal', 'mask_head.conv_embed': 'pixel'}
# Our names as patterns, and the authors'. They count the FPN's maps from C2, and in a tower every layer.
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


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message says why."""


def their_parts(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Name the authors' weights that, one after another along their first dimension, make up one of ours.

    Args:
        name: Our name.
        shape: Our shape.

    Returns:
        Their names and shapes; none for the counters of batch normalization, which theirs lacks.

    Raises:
        ConversionError: They have no such weight.
    """
    owner, leaf = name.rsplit('.', 1)
    if leaf == 'num_batches_tracked':
        return {}
    if owner in EMBEDDINGS:
        channels, *kernel = shape
        spatial, other = (f'{HEAD}.{EMBEDDINGS[owner]}_{part}_embed_pred.{leaf}' for part in ('spatial', 'other'))
        return {spatial: (NUM_SPATIAL, *kernel), other: (channels - NUM_SPATIAL, *kernel)}
    for pattern, theirs in RENAMES.items():
        renamed, found = re.subn(rf'^{pattern}\b', theirs, name)
        if found:
            return {renamed: shape or (1,)}
    raise ConversionError(
        f"the authors' network has nothing like {name} of the config: only their own can be converted"
    )


def parts_of(model: nn.Module) -> dict[str, dict[str, tuple[int, ...]]]:
    """Apply :func:`their_parts` to all of a model's state."""
    return {name: their_parts(name, tuple(weight.shape)) for name, weight in model.state_dict().items()}


def variance_shifts(model: nn.Module) -> dict[str, float]:
    """Name the variances of batch normalization, with what MMDetection adds to each before it divides by its root.

    The authors' frozen normalization adds nothing, so their variance is ours plus this ``eps``.
    """
    return {f'{name}.running_var': bn.eps for name, bn in model.named_modules() if isinstance(bn, _BatchNorm)}


def shift(weight: Tensor, amount: float) -> Tensor:
    """Add in float64, so that a variance which went there and back is the same to the last bit."""
    return (weight.double() + amount).to(weight.dtype)


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a checkpoint's names and shapes with those that it must have.

    Args:
        weights: Of the checkpoint.
        shapes: By name.

    Raises:
        ConversionError: A name is missing or unknown, or a shape differs.
    """
    missing, unknown = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    problems = []
    if missing:
        problems.append(f'lacks {len(missing)} of {len(shapes)} weights: {name_some(missing)}')
    if unknown:
        problems.append(f'has {len(unknown)} that do not belong there: {name_some(unknown)}')
    if problems:
        raise ConversionError('; it '.join(problems))
    actual = {name: tuple(weights[name].shape) for name in shapes}
    wrong = [
        f'{name} of shape {actual[name]} instead of {shapes[name]}' for name in shapes if actual[name] != shapes[name]
    ]
    if wrong:
        raise ConversionError(f'has {name_some(wrong)}; if it was trained for other classes, give its --config')


def to_mmdet(theirs: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Translate the authors' weights.

    Args:
        theirs: All weights that `model` needs, under the authors' names.
        model: With our names and shapes; may be on the meta device.

    Returns:
        The state of `model`, with which it computes what theirs does.

    Raises:
        ConversionError: A name or shape is wrong.
    """
    parts, shifts = parts_of(model), variance_shifts(model)
    check_weights(theirs, {part: shape for each in parts.values() for part, shape in each.items()})
    ours = {}
    for name, like in model.state_dict().items():
        if parts[name]:
            weight = torch.cat([theirs[part] for part in parts[name]]).reshape(like.shape)
            ours[name] = shift(weight, -shifts[name]) if name in shifts else weight
        else:
            ours[name] = torch.zeros(like.shape, dtype=like.dtype)
    return ours


def to_authors(ours: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Translate our weights back; arguments and errors as of :func:`to_mmdet`."""
    shifts = variance_shifts(model)
    check_weights(ours, {name: tuple(weight.shape) for name, weight in model.state_dict().items()})
    theirs = {}
    for name, parts in parts_of(model).items():
        weight = shift(ours[name], shifts[name]) if name in shifts else ours[name]
        pieces = weight.reshape(-1, *weight.shape[1:]).split([shape[0] for shape in parts.values()]) if parts else ()
        # A piece would be saved with all of the tensor that it is a view of.
        theirs.update((part, piece.clone()) for part, piece in zip(parts, pieces))
    return theirs


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read nothing but the weights of a checkpoint, without the prefix that training on several GPUs adds.

    Args:
        path: Of what the authors' code, MMEngine or ``torch.save(model.state_dict())`` wrote.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: The file is no checkpoint, damaged, asks for more than the safe unpickler gives, or holds no
            weights.
    """
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from error
    except Exception as error:  # the unpickler raises nearly anything on bytes that are no pickle
        raise CheckpointError(explain_failure(path, error)) from error
    weights = checkpoint
    if isinstance(checkpoint, Mapping):
        weights = checkpoint.get('model', checkpoint.get('state_dict', checkpoint))
    items = weights.items() if isinstance(weights, Mapping) else ()
    if not items or not all(isinstance(name, str) and isinstance(weight, Tensor) for name, weight in items):
        raise CheckpointError(
            f'{path} was loaded, but holds no weights: named tensors are expected under "model" (the authors\'), '
            'under "state_dict" (ours), or alone'
        )
    return {name.removeprefix('module.'): weight for name, weight in items}


def check_direction(weights: Mapping[str, Tensor], reverse: bool) -> None:
    """Recognize checkpoints that would need the other direction.

    Raises:
        ConversionError: The weights have the names that they were to be given.
    """
    if reverse and any(name.startswith(f'{HEAD}.') for name in weights):
        raise ConversionError("has the authors' names already: leave out --reverse to get ours")
    if not reverse and any(name.startswith('bbox_head.') for name in weights):
        raise ConversionError("has MMDetection's names already: configs load it as it is; --reverse gives the authors'")


def check_version(theirs: Mapping[str, Tensor]) -> None:
    """Recognize what the authors' code and its ancestor write besides the version that is supported.

    Raises:
        ConversionError: It is FCOS, or EmbedMask with one margin for each instance.
    """
    margin = theirs.get(f'{HEAD}.proposal_margin_pred.weight')
    if margin is not None and margin.shape[:1] == (1,):
        raise ConversionError(
            'is of the older version, with 8 channels and one margin for each instance; here, as in the '
            "authors' current code, there are 16 channels with a margin for each, and one cannot be made from the "
            'other: take their current checkpoint, or train'
        )
    if f'{HEAD}.cls_logits.weight' in theirs and not any('embed_pred' in name for name in theirs):
        raise ConversionError('is one of FCOS: it finds boxes, but has no embeddings to make masks of')


def build_on_meta(cfg: Config) -> nn.Module:
    """Build a config's detector with names and shapes alone."""
    init_default_scope('mmdet')
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def describe(cfg: Config) -> dict:
    """Write what MMDetection looks for beside the weights: the classes' names, and the config."""
    dataset = DATASETS.build({**cfg.val_dataloader.dataset, 'lazy_init': True})
    return dict(dataset_meta=dataset.metainfo, cfg=cfg.pretty_text)


def convert(src: Path, dst: Path, config: Path | None = None, reverse: bool = False) -> Path:
    """Convert a file.

    Args:
        src: Checkpoint to read.
        dst: Checkpoint to write, whole or not at all; its folder is made, and a file that is there is replaced.
        config: What the weights must fit; by default the one of the authors' two networks that it is.
        reverse: Whether `src` is ours and `dst` gets the authors' names.

    Returns:
        The config.

    Raises:
        CheckpointError: `src` cannot be read.
        ConversionError: `src` holds something else, or `dst` cannot be written.
    """
    weights = load_weights(src)
    try:
        check_direction(weights, reverse)
        check_version(weights)
        config = config or CONFIGS[101 if any('layer3.6.' in name for name in weights) else 50]
        cfg = Config.fromfile(config)
        model = build_on_meta(cfg)
        if reverse:
            checkpoint = dict(model=to_authors(weights, model))
        else:
            checkpoint = dict(meta=describe(cfg), state_dict=to_mmdet(weights, model))
    except ConversionError as error:
        raise ConversionError(f'the checkpoint {src} {error}') from None
    content = io.BytesIO()
    torch.save(checkpoint, content)
    try:
        AtomicBackend().put(content.getvalue(), dst)
    except OSError as error:
        raise ConversionError(f'{dst} cannot be written: {error.strerror or error}') from error
    return config


def main() -> None:
    """Convert a file, or end with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'src', metavar='SRC', help="checkpoint of the authors (.pth); with --reverse one of this project's"
    )
    parser.add_argument('dst', metavar='DST', help='checkpoint to write; a file that is there is replaced')
    parser.add_argument('--reverse', action='store_true', help="give our weights the authors' names")
    parser.add_argument(
        '--config', help='config that the weights belong to, if they are not for the 80 classes of COCO'
    )
    args = parser.parse_args()
    check_checkpoint(args.src)
    src, dst = Path(args.src).expanduser(), Path(args.dst).expanduser()
    if dst.is_dir():
        fail(f'DST {dst} is a folder: name the file, such as {dst / src.name}')
    if dst.exists() and dst.samefile(src):
        fail(f'SRC and DST are the same file, {src}: name another to write')
    if args.config:
        check_config(args.config)
    try:
        config = convert(src, dst, args.config and Path(args.config).expanduser(), args.reverse)
    except (CheckpointError, ConversionError) as error:
        fail(str(error))
    print(f'wrote {dst}, {"with the names of the authors, from a checkpoint of" if args.reverse else "for"} {config}')


if __name__ == '__main__':
    main()
