"""Training stops as soon as a number becomes NaN or infinite, with an error that names the loss and the images."""

import math
import re

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper

from embedmask_mmdet.engine.finite import find_broken_images, name_image
from tests.training.runs import short_run_cfg, train


class Sabotage(Hook):
    """Does something to the runner before one iteration, and records the images of all batches."""

    def __init__(self, action, iteration=1):
        self.action = action
        self.iteration = iteration
        self.batches = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append([sample.img_path for sample in data_batch['data_samples']])
        if runner.iter == self.iteration:
            self.action(runner, data_batch)


def spoil_pixel(runner, data_batch):
    data_batch['inputs'][0] = data_batch['inputs'][0].float()
    data_batch['inputs'][0][:, 3, 4] = math.nan


def spoil_weight(runner, data_batch):
    runner.model.mask_head.conv_embed.weight.data[0] = math.nan


def overflow_loss(runner, data_batch):
    """Make each class's loss finite, but their sum infinite."""
    runner.model.bbox_head.conv_cls.bias.data[:] = 1e38


@pytest.mark.parametrize('iteration', [0, 1], ids=['first iteration', 'second iteration'])
def test_image_with_broken_pixels_is_named(tmp_path, data_root, iteration):
    sabotage = Sabotage(spoil_pixel, iteration)
    with pytest.raises(FloatingPointError) as error:
        train(short_run_cfg(data_root, tmp_path, epochs=2), hooks=(sabotage,))
    first, second = map(re.escape, sabotage.batches[iteration])
    error.match(f'loss_cls is nan.* on images {first}, {second}: the pixels of {first} are NaN or infinite')
    assert not list(tmp_path.glob('*.pth'))


def test_broken_weights_are_named_with_the_images_before(tmp_path, data_root):
    sabotage = Sabotage(spoil_weight)
    with pytest.raises(FloatingPointError) as error:
        train(short_run_cfg(data_root, tmp_path, epochs=2), hooks=(sabotage,))
    before, batch = (re.escape(', '.join(names)) for names in sabotage.batches)
    error.match(f'^loss_mask is nan on images {batch}: 1 weights are NaN or infinite')
    error.match(rf'\(mask_head\.conv_embed\.weight\), .* previous batch \(images {before}\)')


def test_broken_weights_from_the_beginning(tmp_path, data_root):
    with pytest.raises(FloatingPointError, match=r'previous batch \(images unknown\) or by the checkpoint'):
        train(short_run_cfg(data_root, tmp_path, epochs=2), hooks=(Sabotage(spoil_weight, iteration=0),))


def test_infinite_loss_is_named(tmp_path, data_root):
    with pytest.raises(FloatingPointError, match='^loss_cls is inf on images .* predictions are finite. Lower the le'):
        train(short_run_cfg(data_root, tmp_path, epochs=2), hooks=(Sabotage(overflow_loss),))


def test_image_with_broken_predictions_is_named(tmp_path, data_root):
    def break_second_image(module, args, output):
        return (*output[:-1], output[-1] * torch.tensor([1.0, math.inf]).reshape(2, 1, 1, 1))

    sabotage = Sabotage(lambda runner, batch: runner.model.backbone.register_forward_hook(break_second_image))
    with pytest.raises(FloatingPointError) as error:
        train(short_run_cfg(data_root, tmp_path, epochs=2), hooks=(sabotage,))
    error.match(f': the predictions of {re.escape(sabotage.batches[1][1])} are NaN or infinite')


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('output', [lambda outputs: outputs[0][1], lambda outputs: outputs[1]], ids=['list', 'tensor'])
def test_one_broken_value_in_one_map_is_found(output, value):
    outputs = ([torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2)], torch.zeros(2, 16, 4, 4))
    output(outputs)[1, 2, 0, 1] = value
    samples = [DetDataSample(metainfo=dict(img_id=image_id)) for image_id in (7, 8)]
    message = find_broken_images(lambda inputs, mode: outputs, torch.zeros(2, 3, 32, 32), samples)
    assert message == 'the predictions of img_id 8 are NaN or infinite'


def test_values_that_are_not_losses_may_be_nan(tmp_path, data_root):
    def add_value(module, args, kwargs, losses):
        return dict(losses, iou=torch.tensor(math.nan))

    def action(runner, data_batch):
        runner.model.register_forward_hook(add_value, with_kwargs=True, prepend=True)

    train(short_run_cfg(data_root, tmp_path), hooks=(Sabotage(action),))
    assert (tmp_path / 'epoch_1.pth').exists()


def test_losses_are_not_checked_after_training(tmp_path, data_root):
    batches = []
    sabotage = Sabotage(lambda runner, batch: batches.append(runner.model.data_preprocessor(batch, training=True)))
    model = train(short_run_cfg(data_root, tmp_path), hooks=(sabotage,)).model
    batches[0]['inputs'][:] = math.nan
    assert model(**batches[0], mode='loss')['loss_cls'].isnan()


def break_gradient(value):
    """Make a gradient NaN or infinite in one iteration."""

    def multiply(grad):
        handles.pop().remove()
        return grad * value

    handles = []
    return lambda runner, batch: handles.append(runner.model.mask_head.conv_embed.weight.register_hook(multiply))


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_broken_gradient_is_named_where_gradients_are_clipped(tmp_path, data_root, value):
    cfg = short_run_cfg(data_root, tmp_path, epochs=2)
    cfg.optim_wrapper.clip_grad = dict(max_norm=35)
    sabotage = Sabotage(break_gradient(value))
    with pytest.raises(FloatingPointError) as error:
        train(cfg, hooks=(sabotage,))
    images = re.escape(', '.join(sabotage.batches[1]))
    error.match(f'^The gradient of the losses on images {images} is (nan|inf) in iteration 2. Lower the learning rate')


@pytest.mark.skipif(not hasattr(torch, 'GradScaler'), reason='torch before 2.3 scales losses on GPUs only')
def test_loss_scaler_may_skip_broken_gradients(tmp_path, data_root, monkeypatch):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', lambda: torch.GradScaler('cpu', init_scale=8.0))
    cfg = short_run_cfg(data_root, tmp_path, epochs=2)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', clip_grad=dict(max_norm=35))
    runner = train(cfg, hooks=(Sabotage(break_gradient(math.inf)),))
    assert runner.optim_wrapper.loss_scaler.get_scale() == 4
    assert all(weight.isfinite().all() for weight in runner.model.state_dict().values())
    assert (tmp_path / 'epoch_2.pth').exists()


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_broken_weights_are_not_saved(tmp_path, data_root, value):
    sabotage = Sabotage(break_gradient(value))
    with pytest.raises(FloatingPointError) as error:
        train(short_run_cfg(data_root, tmp_path), hooks=(sabotage,))
    images = re.escape(', '.join(sabotage.batches[1]))
    error.match(
        rf'1 weights are NaN or infinite \(mask_head\.conv_embed\.weight\), .* images {images}, so no checkpoint'
    )
    assert not list(tmp_path.glob('*.pth'))


def test_images_are_named_by_path_or_id():
    assert name_image(DetDataSample(metainfo=dict(img_path='a/1.png', img_id=7))) == 'a/1.png'
    assert name_image(DetDataSample(metainfo=dict(img_id=7))) == 'img_id 7'
    assert name_image(DetDataSample()) == 'img_id unknown'
