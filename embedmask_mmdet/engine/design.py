"""What a checkpoint says about the model that it comes from, and the same about the model to train."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedmask_mmdet.models import EmbedMask
from embedmask_mmdet.models.weights import META_KEY

# FCOS's settings that change what weights of its head mean, but neither their names nor their shapes.
HEAD_SETTINGS = ('norm_on_bbox', 'centerness_on_reg')


@dataclass
class Design:
    """A model, as far as it is known; None, empty and missing values stand for what is not.

    Attributes:
        detector: Type of the detector.
        classes: Names of the classes.
        neck_stride: Input pixels per cell of the neck's finest level.
        head: Values of ``HEAD_SETTINGS``.
        inputs: What the backbone expects, by the name of the setting within ``model``.
    """

    detector: str | None = None
    classes: tuple[str, ...] = ()
    neck_stride: float | None = None
    head: dict[str, bool] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)


class _DictCalls(ast.NodeTransformer):
    """Replaces ``dict(a=1)`` by ``{'a': 1}``, and what is not a literal by None."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if not (isinstance(node.func, ast.Name) and node.func.id == 'dict') or node.args:
            return ast.Constant(None)
        pairs = [(ast.Constant(item.arg), self.visit(item.value)) for item in node.keywords if item.arg]
        return ast.Dict([key for key, _ in pairs], [value for _, value in pairs])

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(None)


def read_assignments(text: str, names: Sequence[str]) -> dict[str, dict]:
    """Read dictionaries from the text of a config without running it: a checkpoint is not trusted to run code.

    Args:
        text: Of a config, as MMEngine and MMDetection 2 write it to checkpoints.
        names: Of variables.

    Returns:
        The dictionary of each name that has one; values that are no literals are None.
    """
    found = {}
    try:
        for node in ast.parse(text).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id in names:
                found[target.id] = ast.literal_eval(_DictCalls().visit(node.value))
    except (SyntaxError, ValueError, RecursionError):  # not a config
        pass
    return {name: value for name, value in found.items() if isinstance(value, dict)}


def get_classes(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes from a checkpoint's ``meta``, of MMDetection 2 or 3; empty if it has none."""
    dataset_meta = meta.get('dataset_meta') or meta
    classes = dataset_meta.get('classes') or dataset_meta.get('CLASSES') or ()
    return (classes,) if isinstance(classes, str) else tuple(classes)


def read_design(checkpoint: Mapping[str, Any]) -> Design:
    """Read what a checkpoint says about its model.

    Args:
        checkpoint: As MMEngine reads it: with ``state_dict``, or the weights themselves.
    """
    meta = checkpoint.get('meta') or {}
    text = meta.get('cfg') or meta.get('config')
    config = read_assignments(text, ('model', 'img_norm_cfg')) if isinstance(text, str) else {}
    model = config.get('model', {})
    design = Design(model.get('type'), get_classes(meta), _find_neck_stride(model))
    bbox_head = model.get('bbox_head')
    if isinstance(bbox_head, dict):
        default = str(bbox_head.get('type')).startswith('EmbedMask')
        design.head = {name: bbox_head.get(name, default) for name in HEAD_SETTINGS}
    design.inputs = _find_inputs(model, config.get('img_norm_cfg', {}))
    weights = checkpoint.get('state_dict', checkpoint)
    meaning = getattr(weights, '_metadata', {}).get('', {}).get(META_KEY, {})
    if meaning:
        design.detector = design.detector or EmbedMask.__name__
        has_branch = any(name.startswith('pixel_branch.') for name in weights)
        strides = meaning.get('bbox_head.strides') if has_branch else [meaning.get('mask_head.stride')]
        design.neck_stride = strides[0] if strides and strides[0] else design.neck_stride
        design.head['norm_on_bbox'] = meaning.get('bbox_head.norm_on_bbox')
    return design


def _find_neck_stride(model: Mapping[str, Any]) -> float | None:
    """Return the stride of the first head's first level, which reads the finest level of the neck."""
    if str(model.get('type')).startswith('EmbedMask') and not model.get('pixel_branch'):
        return (model.get('mask_head') or {}).get('stride')
    for head in (model.get('rpn_head'), model.get('bbox_head')):
        if isinstance(head, dict):
            strides = head.get('strides') or (head.get('anchor_generator') or {}).get('strides')
            if strides:
                return strides[0][0] if isinstance(strides[0], (list, tuple)) else strides[0]
    return None


def _find_inputs(model: Mapping[str, Any], img_norm_cfg: Mapping[str, Any]) -> dict[str, Any]:
    preprocessor = model.get('data_preprocessor') or img_norm_cfg  # the latter in MMDetection 2
    style = (model.get('backbone') or {}).get('style')
    inputs = {} if style is None else {'backbone.style': style}
    if preprocessor.get('mean') and preprocessor.get('std'):
        inputs['data_preprocessor.mean'] = [float(value) for value in preprocessor['mean']]
        inputs['data_preprocessor.std'] = [float(value) for value in preprocessor['std']]
        inputs['data_preprocessor.bgr_to_rgb'] = bool(preprocessor.get('bgr_to_rgb', preprocessor.get('to_rgb', False)))
    return inputs


def describe_model(model: EmbedMask, classes: Sequence[str]) -> Design:
    """Describe a model to train like what :func:`read_design` says about a checkpoint."""
    head = {name: getattr(model.bbox_head, name) for name in HEAD_SETTINGS}
    design = Design(type(model).__name__, tuple(classes), model.neck_stride, head)
    if hasattr(model.backbone, 'style'):
        design.inputs['backbone.style'] = model.backbone.style
    preprocessor = model.data_preprocessor
    if hasattr(preprocessor, 'mean'):
        for name in ('mean', 'std'):
            values = getattr(preprocessor, name).flatten().tolist()
            design.inputs[f'data_preprocessor.{name}'] = [round(value, 4) for value in values]
        design.inputs['data_preprocessor.bgr_to_rgb'] = preprocessor._channel_conversion
    return design
