"""A mask loss that somebody writes from the docstring of ``LogProbLoss`` trains with every design."""

from unittest import mock

import pytest
import torch
from mmdet.registry import MODELS

from embedmask_mmdet.models import LogProbLoss
from embedmask_mmdet.models.losses import SURELY_OUTSIDE
from embedmask_mmdet.targets import mask_coverage, mask_targets
from tests.builders import COCO_CONFIG, PLUS_CONFIG, batch, compute_losses, responsive_model_cfg, tiny_detector

SIZE = (96, 128)


class CrossEntropy(LogProbLoss):
    """Binary cross-entropy, summed over pixels."""

    def instance_losses(self, log_prob, target):
        target = target.float()
        # The logarithm of 1 - exp(0) would be infinite.
        log_prob = log_prob.clamp(max=-1e-6)
        return -(target * log_prob + (1 - target) * torch.log1p(-log_prob.exp())).sum(dim=(1, 2))


class SoftCrossEntropy(CrossEntropy):
    def make_target(self, masks, grid_size, mask_stride):
        return mask_coverage(masks, grid_size, mask_stride)


class HardCrossEntropy(CrossEntropy):
    def make_target(self, masks, grid_size, mask_stride):
        return mask_targets(masks, grid_size, mask_stride)


@pytest.mark.parametrize('counts', [[3, 2], [2, 0], [0, 0]], ids=['both', 'one image empty', 'batch empty'])
@pytest.mark.parametrize('loss_type', [SoftCrossEntropy, HardCrossEntropy])
@pytest.mark.parametrize('config', [COCO_CONFIG, PLUS_CONFIG], ids=['paper', 'plus'])
def test_own_loss_trains(config, loss_type, counts):
    cfg = responsive_model_cfg(config)
    cfg.mask_head.loss_mask = dict(type='OwnLoss', loss_weight=0.01)
    with mock.patch.dict(MODELS.module_dict, OwnLoss=loss_type):
        model = tiny_detector(cfg)
    losses = compute_losses(model, batch([SIZE, SIZE], counts))
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses['loss_mask'] > 0) == (sum(counts) > 0)
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_pixels_surely_outside_cost_nothing_and_get_no_gradient():
    log_prob = torch.tensor([[[-0.5, SURELY_OUTSIDE], [SURELY_OUTSIDE, -2.0]]], requires_grad=True)
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    loss = SoftCrossEntropy()(log_prob, target)
    loss.backward()
    expected = torch.nn.functional.binary_cross_entropy(torch.tensor([-0.5, -2]).exp(), torch.tensor([1.0, 0]))
    torch.testing.assert_close(loss, 2 * expected)
    assert log_prob.grad[0, 0, 1] == log_prob.grad[0, 1, 0] == 0
