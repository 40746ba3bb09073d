"""MMEngine's own options for training: each works, and does to the weights what it should."""

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper

from tests.training.runs import Record, largest_difference, short_run_cfg, train


class Weights(Record):
    """Also keeps a weight as it is after each iteration."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def after_train_iter(self, runner, *args, **kwargs):
        super().after_train_iter(runner, *args, **kwargs)
        self.weights.append(runner.model.mask_head.conv_embed.weight.detach().clone())


@pytest.fixture(scope='module')
def ordinary(data_root, tmp_path_factory):
    """Two epochs of two iterations without any option."""
    record = Weights()
    runner = train(short_run_cfg(data_root, tmp_path_factory.mktemp('ordinary'), epochs=2), hooks=(record,))
    return runner.model.state_dict(), record


def run(cfg):
    record = Weights()
    return train(cfg, hooks=(record,)).model, record


def test_gradient_accumulation(data_root, tmp_path, ordinary):
    cfg = short_run_cfg(data_root, tmp_path, epochs=2)
    cfg.optim_wrapper.accumulative_counts = 2
    _, record = run(cfg)
    first, second, third, fourth = record.weights
    assert not torch.equal(first, ordinary[1].weights[0])
    assert not torch.equal(first, second)
    assert torch.equal(second, third)
    assert not torch.equal(third, fourth)


def test_ema(data_root, tmp_path):
    cfg = short_run_cfg(data_root, tmp_path, epochs=2)
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.5))
    train(cfg)
    checkpoint = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)
    averaged = {name.removeprefix('module.'): weight for name, weight in checkpoint['ema_state_dict'].items()}
    averaged.pop('steps')
    assert averaged.keys() == checkpoint['state_dict'].keys()
    assert 0 < largest_difference(averaged, checkpoint['state_dict']) < 1


def test_amp(data_root, tmp_path, ordinary, monkeypatch):
    # MMEngine's wrapper wants a GPU, but its autocast does without, in bfloat16.
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    cfg = short_run_cfg(data_root, tmp_path, epochs=2)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    _, record = run(cfg)
    for losses, expected in zip(record.losses, ordinary[1].losses):
        assert losses == pytest.approx(expected, rel=0.05)
    assert record.losses[0] != ordinary[1].losses[0]


def test_activation_checkpointing(data_root, tmp_path, ordinary):
    cfg = short_run_cfg(data_root, tmp_path, epochs=2)
    cfg.activation_checkpointing = ['backbone.layer3', 'backbone.layer4', 'mask_head.mask_convs']
    model, record = run(cfg)
    assert record.losses[-1] == pytest.approx(ordinary[1].losses[-1], rel=1e-5)
    assert largest_difference(model.state_dict(), ordinary[0]) < 1e-6


@pytest.mark.slow
def test_compile(data_root, tmp_path, ordinary):
    cfg = short_run_cfg(data_root, tmp_path, epochs=2)
    cfg.compile = True
    torch._dynamo.reset()
    model, record = run(cfg)
    for losses, expected in zip(record.losses, ordinary[1].losses):
        assert losses == pytest.approx(expected, rel=1e-3)
    assert largest_difference(model.state_dict(), ordinary[0]) < 1e-4
