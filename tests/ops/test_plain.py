"""The plain path's own arithmetic, which the kernels are compared with, against the formula."""

import torch
from torch.autograd.graph import saved_tensors_hooks

from embedmask_mmdet.ops import plain


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
