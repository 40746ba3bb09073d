"""With margins so sharp that every pixel saturates, only the loss that keeps their gradient learns masks."""

import pytest
import torch
from mmengine.hooks import Hook

from tests.builders import write_tiny_coco
from tests.training.runs import Record, short_run_cfg, train

STUCK = 0.5 * 21.72  # the loss of an instance all of whose pixels have a probability below 1e-9


class SharpenMargins(Hook):
    """Starts training with margins of about 4000 on the spatial channels."""

    def before_train(self, runner):
        with torch.no_grad():
            runner.model.bbox_head.conv_margin.bias[:2] += 10


def last_mask_loss(data_root, work_dir, keep_saturated_grad):
    cfg = short_run_cfg(data_root, work_dir, epochs=60, interval=100)
    cfg.model.frame.coord_scale = 16
    cfg.model.mask_head.loss_mask.keep_saturated_grad = keep_saturated_grad
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=10))
    cfg.param_scheduler = None
    record = Record()
    train(cfg, hooks=(SharpenMargins(), record))
    losses = [losses['loss_mask'] for losses in record.losses]
    return losses[0], sum(losses[-20:]) / 20


@pytest.mark.slow
def test_recovers_from_saturation_on_request(tmp_path):
    data_root = write_tiny_coco(tmp_path / 'tiny')
    first, last = last_mask_loss(data_root, tmp_path / 'default', keep_saturated_grad=False)
    assert last > 0.99 * STUCK
    first_kept, last_kept = last_mask_loss(data_root, tmp_path / 'kept', keep_saturated_grad=True)
    assert first_kept == pytest.approx(first)
    assert last_kept < 0.9 * STUCK
