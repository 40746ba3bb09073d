"""An image's results do not depend on the images beside it in a batch."""

import copy

import pytest
import torch

from embedmask_mmdet.models.detector import split_by_pad_shape
from tests.builders import batch, build_responsive_detector

# Padded to multiples of 32, the first and the last are the only ones of one size.
SIZES = [(97, 130), (128, 96), (64, 200), (150, 60), (97, 128), (100, 130)]
BATCHES = {
    'pairs': [[0, 1], [2, 3], [4, 5]],
    'four and two': [[0, 1, 2, 3], [4, 5]],
    'all': [[0, 1, 2, 3, 4, 5]],
    'shuffled': [[3, 5, 0], [4, 2, 1]],
}


@pytest.fixture(scope='module')
def model():
    return build_responsive_detector()


def predict(model, indices):
    data = batch(SIZES, [3] * len(SIZES))
    chosen = {name: [copy.deepcopy(values[i]) for i in indices] for name, values in data.items()}
    with torch.no_grad():
        samples = model.test_step(chosen)
    assert [sample.img_id for sample in samples] == [i + 1 for i in indices]
    return {i: sample.pred_instances for i, sample in zip(indices, samples)}


@pytest.fixture(scope='module')
def alone(model):
    return {i: predict(model, [i])[i] for i in range(len(SIZES))}


@pytest.mark.parametrize('batches', BATCHES.values(), ids=BATCHES)
def test_batches_give_what_single_images_give(model, alone, batches):
    for indices in batches:
        for i, results in predict(model, indices).items():
            assert 0.02 < results.masks.float().mean() < 0.9
            assert torch.equal(results.labels, alone[i].labels)
            assert torch.equal(results.masks, alone[i].masks)
            torch.testing.assert_close(results.bboxes, alone[i].bboxes, rtol=0, atol=1e-4)
            torch.testing.assert_close(results.scores, alone[i].scores, rtol=0, atol=1e-6)


def ids_by_size(inputs, data_samples):
    groups = split_by_pad_shape(inputs, data_samples)
    return {tuple(images.shape[-2:]): [sample.img_id for sample in samples] for images, samples in groups}


def test_images_of_one_padded_size_are_predicted_together(model):
    data = model.data_preprocessor(batch(SIZES, [3] * len(SIZES)))
    assert ids_by_size(data['inputs'], data['data_samples']) == {
        (128, 160): [1, 6],
        (128, 96): [2],
        (64, 224): [3],
        (160, 64): [4],
        (128, 128): [5],
    }
    for images, samples in split_by_pad_shape(data['inputs'], data['data_samples']):
        for image, sample in zip(images, samples):
            height, width = image.shape[1:]
            assert torch.equal(image, data['inputs'][sample.img_id - 1, :, :height, :width])


def test_images_are_taken_as_they_are_without_a_padded_size():
    data = batch([(64, 96), (64, 96)], [1, 1])
    assert ids_by_size(torch.stack(data['inputs']), data['data_samples']) == {(64, 96): [1, 2]}
