"""Arguments of the op, fixed and drawn by hypothesis, and comparisons with plain PyTorch in float64."""

import math

import numpy as np
import pycocotools.mask
import torch
from hypothesis import strategies as st
from torch.nn import functional

from embedmask_mmdet.ops import instance_log_probs, plain

THRESHOLD_TOLERANCE = 1e-4  # in log-probability: pixels this near to the threshold may be on or off
EMBEDDINGS = ('pixel_embed', 'proposal_embed', 'proposal_margin')


def make_arguments(instances=3, grid=(10, 14), channels=16, dtype=torch.float32):
    """Make arguments of `instance_masks`: a smooth pixel embedding, and instances whose embeddings are pixels of it."""
    generator = torch.Generator().manual_seed(0)
    h, w = grid
    coarse = torch.randn(1, channels, 4, 5, generator=generator, dtype=torch.float64)
    pixel_embed = functional.interpolate(coarse, grid, mode='bicubic')[0]
    centers = torch.rand(instances, 2, generator=generator) * torch.tensor([8 * w, 8 * h])
    sides = torch.rand(instances, 2, generator=generator) * 60
    proposal_embed = pixel_embed[:, (centers[:, 1] // 8).long(), (centers[:, 0] // 8).long()].T
    proposal_margin = torch.rand(instances, channels, generator=generator, dtype=torch.float64) / channels
    return dict(
        pixel_embed=pixel_embed.to(dtype),
        proposal_embed=proposal_embed.to(dtype),
        proposal_margin=proposal_margin.to(dtype),
        bboxes=torch.cat([centers - sides, centers + sides], 1),
        stride=8,
        img_shape=(8 * h, 8 * w),
        ori_shape=(61, 47),
        mask_thr=0.53,
        upscale=2,
    )


def make_embeddings(**kwargs):
    """Make the arguments of `embedding_log_prob`; for `kwargs` see `make_arguments`."""
    arguments = make_arguments(**kwargs)
    return tuple(arguments[name] for name in EMBEDDINGS)


def make_full_masks(grid, bboxes, ori_shape):
    """Make arguments of `instance_masks` in which every pixel has the embedding of every instance."""
    h, w = grid
    return dict(
        pixel_embed=torch.zeros(2, h, w),
        proposal_embed=torch.zeros(len(bboxes), 2),
        proposal_margin=torch.ones(len(bboxes), 2),
        bboxes=torch.tensor(bboxes, dtype=torch.float32),
        stride=8,
        img_shape=(8 * h, 8 * w),
        ori_shape=ori_shape,
    )


def make_nan_beyond_box(side):
    """Make arguments of `instance_masks` with a box that reaches only the first cells, and a NaN in the second ones."""
    if side == 'left':
        arguments = make_full_masks((6, 30), [[-20, 0, -5, 48]], (48, 240))
        arguments['pixel_embed'][1, 3, 1] = torch.nan
    else:
        arguments = make_full_masks((6, 30), [[0, -20, 240, -5]], (48, 240))
        arguments['pixel_embed'][1, 1, 15] = torch.nan
    return arguments


def make_stripes(grid=(120, 9), period=5.3, ori_shape=(480, 36)):
    """Make arguments of `instance_masks` with masks of horizontal stripes in boxes of many heights."""
    arguments = make_full_masks(grid, [[8, 16, 60, 16 + 4 * cells] for cells in range(50, 140, 3)], ori_shape)
    arguments['pixel_embed'][0] = (torch.arange(grid[0]) * 2 * math.pi / period).sin()[:, None] * 2
    return arguments


@st.composite
def draw_edges(draw, size):
    """Draw a box's edge: mostly near the image, sometimes far outside, infinite or NaN."""
    near = st.floats(-40, size + 40, width=32)
    odd = st.sampled_from([math.nan, math.inf, -math.inf, -1e30, 1e30, 0.0, float(size), 3.9999998])
    return draw(st.one_of(near, near, near, odd))


@st.composite
def draw_mask_stages(draw):
    """Draw arguments of `instance_masks`: grids from 1x1, any factor, boxes of every kind, up to 4 instances."""
    channels, h, w = draw(st.integers(1, 5)), draw(st.integers(1, 14)), draw(st.integers(1, 40))
    stride, upscale = draw(st.sampled_from([(8, 2), (8, 1), (4, 2), (16, 4), (8, 3), (1, 1), (5, 2)]))
    img_shape = draw(st.integers(max(1, (h - 1) * stride), h * stride)), draw(st.integers(1, w * stride))
    ori_shape = draw(st.integers(1, 90)), draw(st.integers(1, 120))
    instances = draw(st.integers(0, 4))
    edges = draw_edges(max(img_shape))
    bboxes = torch.tensor(
        draw(st.lists(st.lists(edges, min_size=4, max_size=4), min_size=instances, max_size=instances))
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.3, 1.0, 10.0]))
    return dict(
        pixel_embed=torch.randn(channels, h, w, generator=generator) * scale,
        proposal_embed=torch.randn(instances, channels, generator=generator) * scale,
        proposal_margin=torch.rand(instances, channels, generator=generator) / scale**2,
        bboxes=bboxes.reshape(instances, 4),
        stride=stride,
        img_shape=img_shape,
        ori_shape=ori_shape,
        mask_thr=draw(st.sampled_from([0.53, 0.05, 0.9, 1e-7])),
        upscale=upscale,
        resize_prob=draw(st.booleans()),
    )


@st.composite
def draw_log_probs(draw):
    """Draw the arguments of `embedding_log_prob` and a gradient of its result that is zero at most pixels."""
    instances, channels, h = draw(st.integers(0, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 12))
    w, scale = draw(st.integers(1, 40)), draw(st.sampled_from([1.0, 1e2, 1e4]))
    generator = torch.Generator().manual_seed(channels * w)
    tensors = [
        torch.randn(channels, h, w, generator=generator) * scale,
        torch.randn(instances, channels, generator=generator) * scale,
        torch.rand(instances, channels, generator=generator) * scale,
    ]
    grad = torch.randn(instances, h, w, generator=generator)
    return tensors, grad * (torch.rand(instances, h, w, generator=generator) < 0.3)


def make_equal_pixels():
    """Make a million pixels with one difference and one gradient: sums of their gradients are inexact in float32."""
    tensors = [torch.full((1, 1000, 1000), 0.1), torch.zeros(1, 1), torch.ones(1, 1)]
    return tensors, torch.ones(1, 1000, 1000)


def convert_to_double(arguments):
    return {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


def assert_masks_are_plain(masks, arguments):
    """Compare each pixel with plain PyTorch in float64, unless it is within the tolerance of the threshold there."""
    h, w = arguments['ori_shape']
    assert masks.shape == (len(arguments['bboxes']), h, w)
    assert masks.dtype == torch.bool
    log_thr = math.log(arguments.get('mask_thr', 0.53))
    for mask, log_prob in zip(masks, instance_log_probs(**convert_to_double(arguments)), strict=True):
        clear = ((log_prob - log_thr).abs() > THRESHOLD_TOLERANCE) | ~log_prob.isfinite()
        assert torch.equal(mask[clear], (log_prob > log_thr)[clear])


def assert_log_prob_is_plain(log_prob, gradients, tensors, grad, tolerance=1e-5):
    """Compare log-probabilities and gradients with those of plain PyTorch in float64."""
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = plain.embedding_log_prob(*exact)
    torch.testing.assert_close(log_prob, expected.to(log_prob.dtype), rtol=tolerance, atol=0)
    for gradient, oracle in zip(gradients, torch.autograd.grad((expected * grad).sum(), exact), strict=True):
        assert gradient.shape == oracle.shape
        if oracle.numel():
            assert (gradient - oracle).abs().max() <= tolerance * oracle.abs().max()


def encode(masks):
    return [pycocotools.mask.encode(np.asfortranarray(mask.numpy().view(np.uint8))) for mask in masks]
