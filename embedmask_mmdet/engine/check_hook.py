"""The hook that checks data, metrics and checkpoints before time is lost on them."""

from __future__ import annotations

import ast
import contextlib
import inspect
from typing import Any

import numpy as np
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from embedmask_mmdet.engine.bare_model import bare_model
from embedmask_mmdet.engine.data_checks import check_dataset, check_metrics
from embedmask_mmdet.errors import InputError, name_some
from embedmask_mmdet.models import EmbedMask, EmbedMaskBBoxHead, EmbedMaskMaskHead

HEADS = dict(bbox_head=EmbedMaskBBoxHead, mask_head=EmbedMaskMaskHead)
# Settings that change what a head's weights mean, but neither their names nor their shapes.
MEANINGS = dict(
    bbox_head=(
        'strides',
        'coord_scale',
        'prior_margin',
        'embed_reduce_factor',
        'margin_reduce_factor',
        'box_centers',
        'box_margins',
        'norm_on_bbox',
    ),
    mask_head=('stride', 'num_levels'),
)


def settings_of(head: str, config: str) -> dict[str, Any]:
    """Read a head's settings from the text of a config without running it, which may be anyone's; none if no Python."""
    settings = {}
    try:
        tree = ast.parse(config)
    except SyntaxError:
        return settings
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == head and isinstance(node.value, ast.Call):
            for setting in node.value.keywords:
                with contextlib.suppress(ValueError):  # others than literals are none that are looked for
                    settings[setting.arg] = ast.literal_eval(setting.value)
    return settings


def check_meaning(model: EmbedMask, config: str, path: str) -> None:
    """Compare what a model makes of its weights with what the model made of them that was trained.

    Args:
        model: With both heads.
        config: Text of the config that is saved in a checkpoint.
        path: Of the checkpoint.

    Raises:
        InputError: If a setting of ``MEANINGS`` differs.
    """
    for head_name, names in MEANINGS.items():
        head = getattr(model, head_name)
        # A user's own head may hand its arguments on without naming them.
        defaults = inspect.signature(HEADS[head_name]).parameters
        trained = settings_of(head_name, config)
        for name in names:
            there, here = trained.get(name, defaults[name].default), getattr(head, name)
            if not np.array_equal(there, here):
                raise InputError(
                    f'{path} was trained with model.{head_name}.{name}={there}, this config has {here}, which makes '
                    'something else of the same weights; give the checkpoint and the config that belong together'
                )


@HOOKS.register_module()
class EmbedMaskCheckHook(Hook):
    """Checks datasets and metrics before training and testing, and that each checkpoint fits the model."""

    def before_train(self, runner: Runner) -> None:
        """Check the training and the validation dataset, and the metrics of the validation."""
        num_classes = bare_model(runner).bbox_head.num_classes
        check_dataset(runner.train_dataloader.dataset, num_classes)
        if runner._val_loop is not None:
            check_dataset(runner.val_dataloader.dataset, num_classes)
            check_metrics(runner.val_evaluator, runner.val_dataloader.dataset, 'val_evaluator')

    def before_test(self, runner: Runner) -> None:
        """Check the test dataset and the metrics of the test."""
        check_dataset(runner.test_dataloader.dataset, bare_model(runner).bbox_head.num_classes)
        check_metrics(runner.test_evaluator, runner.test_dataloader.dataset, 'test_evaluator')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare a checkpoint's names with the model's, and what its weights were trained to mean.

        Weights to start training from need to fit in part only; those to test or to resume must be complete.
        """
        state_dict = checkpoint.get('state_dict', checkpoint)
        given = {key.removeprefix('module.') for key in state_dict}
        wanted = set(bare_model(runner).state_dict())
        missing = sorted(wanted - given)
        complete = runner._resume or not isinstance(runner._train_loop, BaseLoop)
        if missing and (complete or not wanted & given):
            raise InputError(
                f'{runner._load_from} is no checkpoint of this config: {len(missing)} of {len(wanted)} weights are '
                f'not in it ({name_some(missing)}), it has others ({name_some(sorted(given - wanted))}); give the '
                'checkpoint and the config that belong together'
            )
        if complete and isinstance(config := checkpoint.get('meta', {}).get('cfg'), str):
            check_meaning(bare_model(runner), config, runner._load_from)
