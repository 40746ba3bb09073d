"""The hook that checks data, metrics and checkpoints before time is lost on them."""

from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from embedmask_mmdet.engine.bare_model import bare_model
from embedmask_mmdet.engine.data_checks import check_dataset, check_metrics
from embedmask_mmdet.engine.loading import prepare_checkpoint


@HOOKS.register_module()
class EmbedMaskCheckHook(Hook):
    """Checks datasets and metrics before training and testing, and that each checkpoint fits the model."""

    # Before hooks that copy the weights, such as MMEngine's EMAHook.
    priority = 'VERY_HIGH'

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
        """Check that the checkpoint belongs to the model, and adapt it."""
        prepare_checkpoint(runner, bare_model(runner), checkpoint)
