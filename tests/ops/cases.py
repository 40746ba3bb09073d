"""Arguments of the mask stage, drawn by hypothesis, and the comparison of masks with the plain path in float64."""

import math

import numpy as np
import pycocotools.mask
import torch
from hypothesis import strategies as st

from embedmask_mmdet.ops import instance_log_probs

THRESHOLD_TOLERANCE = 1e-4  # in log-probability: pixels this near to the threshold may fall either way


@st.composite
def coordinates(draw, size):
    """A box's edge: mostly about the image, sometimes far outside, infinite or NaN."""
    near = st.floats(-40, size + 40, width=32)
    odd = st.sampled_from([math.nan, math.inf, -math.inf, -1e30, 1e30, 0.0, float(size), 3.9999998])
    return draw(st.one_of(near, near, near, odd))


@st.composite
def mask_stages(draw):
    """Keyword arguments of `instance_masks`: grids from 1x1, any factor, boxes of every kind, up to 4 instances."""
    channels, h, w = draw(st.integers(1, 5)), draw(st.integers(1, 14)), draw(st.integers(1, 40))
    stride, upscale = draw(st.sampled_from([(8, 2), (8, 1), (4, 2), (16, 4), (8, 3), (1, 1), (5, 2)]))
    img_shape = draw(st.integers(max(1, (h - 1) * stride), h * stride)), draw(st.integers(1, w * stride))
    ori_shape = draw(st.integers(1, 90)), draw(st.integers(1, 120))
    instances = draw(st.integers(0, 4))
    edges = coordinates(max(img_shape))
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


def double(arguments):
    return {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


def assert_masks_are_plain(masks, arguments):
    """Every pixel is that of the plain path in float64, but where that is within the tolerance of the threshold."""
    h, w = arguments['ori_shape']
    assert masks.shape == (len(arguments['bboxes']), h, w)
    assert masks.dtype == torch.bool
    log_thr = math.log(arguments['mask_thr'])
    for mask, log_prob in zip(masks, instance_log_probs(**double(arguments)), strict=True):
        clear = ((log_prob - log_thr).abs() > THRESHOLD_TOLERANCE) | ~log_prob.isfinite()
        assert torch.equal(mask[clear], (log_prob > log_thr)[clear])


def encode(masks):
    return [pycocotools.mask.encode(np.asfortranarray(mask.numpy().view(np.uint8))) for mask in masks]
