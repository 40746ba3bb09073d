"""The plain path's own arithmetic, which the kernels are compared with, against the formula."""

import math

import torch
from torch.autograd.graph import saved_tensors_hooks

from embedmask_mmdet.ops import instance_log_probs, plain


def draw(channels=3, instances=2, h=3, w=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(channels, h, w), (instances, channels), (instances, channels)]
    return [torch.rand(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def test_log_prob_is_the_formula():
    pixel_embed, proposal_embed, proposal_margin = draw()
    distance = (pixel_embed - proposal_embed[..., None, None]).square()
    expected = -(proposal_margin[..., None, None] * distance).sum(1)
    torch.testing.assert_close(plain.embedding_log_prob(*draw()), expected)


def test_gradients_are_those_of_the_formula():
    assert torch.autograd.gradcheck(plain.embedding_log_prob, draw())
    assert torch.autograd.gradcheck(plain.embedding_log_prob, draw(instances=0))


def test_no_grid_is_kept_for_the_backward_pass():
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        plain.embedding_log_prob(*draw(channels=16, instances=50, h=20, w=20))
    assert sum(kept) == 16 * 20 * 20 + 2 * 50 * 16


def test_resized_probabilities_are_means_and_0_is_outside():
    pixel_embed = torch.tensor([[[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]])
    tensors = (pixel_embed, torch.zeros(1, 1), torch.full((1, 1), -math.log(0.2)), torch.tensor([[0.0, 0.0, 1.0, 0.5]]))
    sizes = dict(stride=1, img_shape=(1, 8), ori_shape=(1, 16), mask_thr=0.5, upscale=1)
    (log_prob,) = instance_log_probs(*tensors, **sizes, resize_prob=True)
    # Cells are 1, 0.2, 1 and 0 from where the box, grown by 2 cells, ends.
    expected = torch.tensor([1, 0.8, 0.4, 0.4, 0.8, 0.75, 0.25, 0, 0])
    torch.testing.assert_close(log_prob[0, :9].exp(), expected)
    (log_prob,) = instance_log_probs(*tensors, **sizes)
    torch.testing.assert_close(log_prob[0, :4].exp(), 0.2 ** torch.tensor([0, 0.25, 0.75, 0.75]))
