"""The detector on a GPU: losses, gradients and detections are those of the CPU, and half precision works."""

import copy

import pytest
import torch
from mmdet.structures.bbox import bbox_overlaps

from tests.builders import (
    COCO_CONFIG,
    PLUS_CONFIG,
    ROOT,
    batch,
    build_responsive_detector,
    compute_losses,
    predict,
    tiny_cfg,
)
from tests.scripts import run_script

pytestmark = pytest.mark.gpu
DEVICE = 'cuda'
SIZE = (96, 128)
both_designs = pytest.mark.parametrize('config', [COCO_CONFIG, PLUS_CONFIG], ids=['paper', 'plus'])
both_halves = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """By default, convolutions on GPUs round their inputs to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def compute_gradients(model):
    """Return the losses of a batch and the gradients of all weights, on the CPU."""
    losses = compute_losses(model, batch([SIZE, SIZE], [3, 2]))
    sum(losses.values()).backward()
    gradients = {name: weight.grad.cpu() for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def detect(model):
    """Return the detections in a batch, on the CPU."""
    return [sample.pred_instances.cpu() for sample in predict(model, batch([SIZE, SIZE], [3, 2]))]


@both_designs
def test_losses_and_gradients_are_those_of_the_cpu(config):
    losses, gradients = compute_gradients(build_responsive_detector(config))
    gpu_losses, gpu_gradients = compute_gradients(build_responsive_detector(config).to(DEVICE))
    assert gpu_losses == pytest.approx(losses, rel=1e-3)
    assert gpu_gradients.keys() == gradients.keys()
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (gpu_gradients[name] - gradient).norm() <= 1e-2 * gradient.norm() + 1e-5 * largest, name


def find_shares(found, expected, iou):
    """Return which share of each image's expected detections was found: by label, boxes and masks, in any order."""
    shares = []
    for image, expected_image in zip(found, expected, strict=True):
        assert len(expected_image) > 5 and expected_image.masks.any(dim=(1, 2)).all()
        masks, expected_masks = image.masks.flatten(1).float(), expected_image.masks.flatten(1).float()
        intersections = expected_masks @ masks.t()
        unions = expected_masks.sum(1)[:, None] + masks.sum(1) - intersections
        overlap = torch.minimum(intersections / unions, bbox_overlaps(expected_image.bboxes, image.bboxes))
        same = expected_image.labels[:, None] == image.labels
        shares.append((overlap * same > iou).any(1).float().mean().item())
    return shares


@both_designs
def test_detections_are_those_of_the_cpu(config):
    expected = detect(build_responsive_detector(config))
    found = detect(build_responsive_detector(config).to(DEVICE))
    assert [len(image) for image in found] == [len(image) for image in expected]
    assert find_shares(found, expected, 0.98) == [1, 1]
    for image, expected_image in zip(found, expected):
        torch.testing.assert_close(image.scores, expected_image.scores, rtol=1e-3, atol=1e-6)


@both_designs
def test_run_lengths_are_those_of_the_bitmaps(config):
    bitmaps = detect(build_responsive_detector(config).to(DEVICE))
    rles = detect(build_responsive_detector(config, mask_format='rle').to(DEVICE))
    for image, image_rles in zip(bitmaps, rles, strict=True):
        assert torch.equal(image_rles.masks.to_tensor(), image.masks)


@both_halves
@both_designs
def test_training_under_autocast_has_finite_losses_and_gradients(config, dtype):
    expected, _ = compute_gradients(build_responsive_detector(config).to(DEVICE))
    model = build_responsive_detector(config).to(DEVICE)
    with torch.autocast(DEVICE, dtype):
        losses = compute_losses(model, batch([SIZE, SIZE], [3, 2]))
    sum(losses.values()).backward()
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=0.25)
    for name, weight in model.named_parameters():
        assert not weight.requires_grad or weight.grad.isfinite().all(), name


@both_halves
@both_designs
def test_inference_under_autocast_detects(config, dtype):
    model = build_responsive_detector(config).to(DEVICE)
    expected = detect(model)
    with torch.autocast(DEVICE, dtype):
        found = detect(model)
    assert min(find_shares(found, expected, 0.9)) > 0.6


@both_halves
@both_designs
def test_model_of_half_precision_detects(config, dtype):
    model = build_responsive_detector(config).to(DEVICE).eval()
    expected = detect(model)
    data = model.data_preprocessor(copy.deepcopy(batch([SIZE, SIZE], [3, 2])))
    samples = model.to(dtype).predict(data['inputs'].to(dtype), data['data_samples'])
    found = [sample.pred_instances.cpu() for sample in samples]
    assert min(find_shares(found, expected, 0.9)) > 0.6


def test_tools_train_with_amp_and_test(data_root, tmp_path):
    tiny_cfg(data_root, tmp_path / 'work').dump(tmp_path / 'tiny.py')
    trained = run_script(ROOT / 'tools' / 'train.py', ['tiny.py', '--amp'], tmp_path)
    assert trained.code == 0, trained.stderr[-3000:]
    tested = run_script(ROOT / 'tools' / 'test.py', ['tiny.py', 'work/epoch_1.pth'], tmp_path)
    assert tested.code == 0, tested.stderr[-3000:]
