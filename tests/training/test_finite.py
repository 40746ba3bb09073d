"""Training never goes on with numbers that are none: the error names the loss and the image."""

import pytest
import torch
from mmengine.hooks import Hook

from tests.tiny import write_tiny_coco
from tests.training.small import small_cfg, train


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return write_tiny_coco(tmp_path_factory.mktemp('tiny'))


class Sabotage(Hook):
    """Does something to the runner before the second iteration."""

    def __init__(self, action):
        self.action = action

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1:
            self.action(runner, data_batch)


def spoil_pixels(runner, data_batch):
    data_batch['inputs'][0] = data_batch['inputs'][0].float()
    data_batch['inputs'][0][:, 3, 4] = float('nan')


def spoil_weights(runner, data_batch):
    runner.model.mask_head.conv_embed.weight.data[0] = float('nan')


@pytest.mark.parametrize(
    ('action', 'loss', 'cause'),
    [
        (spoil_pixels, 'loss_cls', r'the pixels of .*\d\.png are not finite'),
        (spoil_weights, 'loss_mask is nan', r'mask_head\.conv_embed\.weight.* batch before \(images .*\d\.png'),
    ],
    ids=['pixels', 'weights'],
)
def test_loss_that_is_not_finite_is_named(tmp_path, data_root, action, loss, cause):
    with pytest.raises(FloatingPointError) as error:
        train(small_cfg(data_root, tmp_path, epochs=2), hooks=(Sabotage(action),))
    error.match(loss)
    error.match(cause)
    assert not list(tmp_path.glob('*.pth'))


def test_image_with_broken_predictions_is_named(tmp_path, data_root):
    names = []

    def break_second_image(module, args, output):
        return (*output[:-1], output[-1] * torch.tensor([1.0, float('inf')]).reshape(2, 1, 1, 1))

    def action(runner, data_batch):
        names.extend(sample.img_path for sample in data_batch['data_samples'])
        runner.model.backbone.register_forward_hook(break_second_image)

    with pytest.raises(FloatingPointError) as error:
        train(small_cfg(data_root, tmp_path, epochs=2), hooks=(Sabotage(action),))
    error.match(f'the predictions for {names[1]} are not finite')
    assert f'predictions for {names[0]}' not in str(error.value)


def break_gradient(runner, data_batch):
    runner.model.mask_head.conv_embed.weight.register_hook(lambda grad: grad * float('nan'))


def test_gradient_that_is_not_finite_is_named(tmp_path, data_root):
    cfg = small_cfg(data_root, tmp_path, epochs=2)
    cfg.optim_wrapper.clip_grad = dict(max_norm=35)
    with pytest.raises(FloatingPointError, match=r'gradient of the losses on images .*\d\.png'):
        train(cfg, hooks=(Sabotage(break_gradient),))


def test_broken_weights_are_not_saved(tmp_path, data_root):
    cfg = small_cfg(data_root, tmp_path, epochs=1)
    with pytest.raises(FloatingPointError, match='nothing was saved'):
        train(cfg, hooks=(Sabotage(break_gradient),))
    assert not list(tmp_path.glob('*.pth'))
