"""The hook that checks data, metrics and checkpoints before time is lost on them."""

from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from embedmask_mmdet.engine.bare_model import bare_model
from embedmask_mmdet.engine.data_checks import (
    find_batch_augment_problems,
    find_dataset_problems,
    find_metric_problems,
    report,
)
from embedmask_mmdet.engine.loading import prepare_checkpoint


@HOOKS.register_module()
class EmbedMaskCheckHook(Hook):
    """Checks datasets and metrics before training and testing, and that each checkpoint fits the model.

    Annotation files are checked even before, while MMDetection reads them.
    """

    # Before hooks that copy the weights, such as MMEngine's EMAHook.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the training and the validation dataset, the metrics of the validation, and augmentations."""
        model = bare_model(runner)
        num_classes = model.bbox_head.num_classes
        found = list(find_batch_augment_problems(model.data_preprocessor))
        found += find_dataset_problems(runner.train_dataloader.dataset, num_classes)
        if runner._val_loop is not None:
            dataset = runner.val_dataloader.dataset
            found += find_dataset_problems(dataset, num_classes)
            found += find_metric_problems(runner.val_evaluator, dataset, 'val_evaluator')
        report(found)

    def before_test(self, runner: Runner) -> None:
        """Check the test dataset and the metrics of the test."""
        dataset = runner.test_dataloader.dataset
        found = find_dataset_problems(dataset, bare_model(runner).bbox_head.num_classes)
        report([*found, *find_metric_problems(runner.test_evaluator, dataset, 'test_evaluator')])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that the checkpoint belongs to the model, and adapt it."""
        prepare_checkpoint(runner, bare_model(runner), checkpoint)
