"""Plain PyTorch, which the kernels are compared with, against the formula."""

import math

import torch
from torch.autograd.graph import saved_tensors_hooks

from embedmask_mmdet.ops import instance_log_probs, instance_masks, plain, point_log_prob
from embedmask_mmdet.ops.mask_stage import MaskStage

from .strategies import convert_to_double, make_arguments


def draw_embeddings(channels=3, instances=2, h=3, w=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(channels, h, w), (instances, channels), (instances, channels)]
    return [torch.rand(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def compute_formula(pixel_embed, proposal_embed, proposal_margin):
    distance = (pixel_embed - proposal_embed[..., None, None]).square()
    return -(proposal_margin[..., None, None] * distance).sum(1)


def test_log_prob_is_the_formula():
    torch.testing.assert_close(plain.embedding_log_prob(*draw_embeddings()), compute_formula(*draw_embeddings()))


def test_log_prob_of_points_is_the_formula():
    _, proposal_embed, proposal_margin = draw_embeddings()
    points_embed = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    expected = compute_formula(points_embed, proposal_embed, proposal_margin)
    torch.testing.assert_close(point_log_prob(points_embed, proposal_embed, proposal_margin), expected)
    assert point_log_prob(points_embed[:0], proposal_embed[:0], proposal_margin[:0]).shape == (0, 5, 7)


def test_log_prob_of_points_in_half_precision_is_computed_in_float32():
    tensors = [tensor.half() for tensor in draw_embeddings(dtype=torch.float32)]
    points_embed = tensors[0].expand(2, -1, -1, -1)
    log_prob = point_log_prob(points_embed, *tensors[1:])
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, plain.embedding_log_prob(*tensors))


def test_gradients_are_those_of_the_formula():
    assert torch.autograd.gradcheck(plain.embedding_log_prob, draw_embeddings())
    assert torch.autograd.gradcheck(plain.embedding_log_prob, draw_embeddings(instances=0))


def test_no_grid_is_kept_for_the_backward_pass():
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        plain.embedding_log_prob(*draw_embeddings(channels=16, instances=50, h=20, w=20))
    assert sum(kept) == 16 * 20 * 20 + 2 * 50 * 16


def test_log_probs_of_the_image_accept_a_margin_of_another_dtype():
    arguments = make_arguments(instances=2)
    (expected, _) = instance_log_probs(**arguments)
    arguments['proposal_margin'] = arguments['proposal_margin'].double()
    (log_prob, _) = instance_log_probs(**arguments)
    assert torch.equal(log_prob, expected)


def test_masks_are_thresholded_log_probs():
    arguments = make_arguments(instances=8)
    log_probs = torch.stack(list(instance_log_probs(**arguments)))
    masks = plain.instance_masks(MaskStage(**arguments))
    assert torch.equal(masks, log_probs > math.log(0.53))
    assert 0.01 < masks.float().mean() < 0.5
    assert (instance_masks(**arguments) != masks).float().mean() < 1e-4


def test_log_probs_of_the_image_follow_the_embeddings_dtype():
    (log_prob,) = instance_log_probs(**convert_to_double(make_arguments(instances=1)))
    assert log_prob.dtype == torch.float64
    arguments = make_arguments(instances=1, dtype=torch.half)
    (log_prob,) = instance_log_probs(**arguments)
    assert log_prob.dtype == torch.float32
    (expected,) = instance_log_probs(**convert_to_double(arguments))
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-4, atol=1e-4)


def test_resized_probabilities_are_means_with_0_outside():
    pixel_embed = torch.tensor([[[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]])
    tensors = (pixel_embed, torch.zeros(1, 1), torch.full((1, 1), -math.log(0.2)), torch.tensor([[0.0, 0.0, 1.0, 0.5]]))
    sizes = dict(stride=1, img_shape=(1, 8), ori_shape=(1, 16), mask_thr=0.5, upscale=1)
    (log_prob,) = instance_log_probs(*tensors, **sizes, resize_prob=True)
    # Cells are 1, 0.2 and 1, and 0 after the box, which ends at cell 3 after its padding.
    expected = torch.tensor([1, 0.8, 0.4, 0.4, 0.8, 0.75, 0.25, 0, 0])
    torch.testing.assert_close(log_prob[0, :9].exp(), expected)
    (log_prob,) = instance_log_probs(*tensors, **sizes)
    torch.testing.assert_close(log_prob[0, :4].exp(), 0.2 ** torch.tensor([0, 0.25, 0.75, 0.75]))
