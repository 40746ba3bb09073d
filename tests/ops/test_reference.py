"""The mask stage of inference against the authors' implementation, tests/data/masks.npz."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from embedmask_mmdet.ops import embedding_log_prob, instance_log_probs, instance_masks, instance_rles, plain
from embedmask_mmdet.ops.mask_stage import MaskStage, box_cells

from .strategies import encode

ARRAYS = dict(np.load(Path(__file__).parents[1] / 'data' / 'masks.npz'))
EMBEDDINGS = [torch.from_numpy(ARRAYS[name]) for name in ('pixel_embed', 'proposal_embed', 'proposal_margin')]
EMBEDDINGS[0] = EMBEDDINGS[0][0]
BBOXES = torch.from_numpy(ARRAYS['bboxes'])
MASK_THR = float(ARRAYS['mask_thr'])


def make_sizes(ori_shape):
    return dict(stride=8, img_shape=tuple(ARRAYS['img_shape'].tolist()), ori_shape=ori_shape)


def load_case(case):
    """Load the size of an original image, and the masks that the authors' code computed for it."""
    ori_shape = tuple(ARRAYS[f'ori_shape{case}'].tolist())
    masks = np.unpackbits(ARRAYS[f'masks{case}'], axis=-1)[..., : ori_shape[1]].astype(bool)
    return ori_shape, torch.from_numpy(masks)


def test_log_prob_inside_boxes_is_the_reference():
    pixel_embed, proposal_embed, proposal_margin = EMBEDDINGS
    resized = functional.interpolate(pixel_embed[None], scale_factor=2, mode='bilinear')[0]
    log_prob = embedding_log_prob(resized, proposal_embed, proposal_margin).numpy()
    expected = ARRAYS['log_prob']
    for i, (x1, y1, x2, y2) in enumerate(box_cells(BBOXES, expected.shape[-2:], 4).tolist()):
        np.testing.assert_allclose(log_prob[i, y1:y2, x1:x2], expected[i, y1:y2, x1:x2], rtol=1e-4, atol=1e-5)
        outside = np.ones(expected.shape[1:], dtype=bool)
        outside[y1:y2, x1:x2] = False
        assert (expected[i][outside] == -10).all()


@pytest.mark.parametrize('case', [0, 1, 2])
def test_masks_are_the_reference(case):
    ori_shape, expected = load_case(case)
    arguments = (*EMBEDDINGS, BBOXES)
    assert torch.equal(instance_masks(*arguments, **make_sizes(ori_shape)), expected)
    assert instance_rles(*arguments, **make_sizes(ori_shape)) == encode(expected)


@pytest.mark.parametrize('case', [0, 1, 2])
def test_masks_of_plain_pytorch_are_the_reference(case):
    ori_shape, expected = load_case(case)
    arguments = (*EMBEDDINGS, BBOXES)
    stage = MaskStage(*arguments, **make_sizes(ori_shape))
    assert torch.equal(plain.instance_masks(stage), expected)
    assert plain.instance_rles(stage) == encode(expected)
    log_probs = torch.stack(list(instance_log_probs(*arguments, **make_sizes(ori_shape))))
    assert torch.equal(log_probs > math.log(MASK_THR), expected)


def test_log_prob_of_the_proposals_own_embedding_is_zero():
    log_prob = embedding_log_prob(torch.full((16, 1, 1), 0.3), torch.full((1, 16), 0.3), torch.ones(1, 16))
    assert log_prob.item() == 0
    log_prob = embedding_log_prob(torch.zeros(16, 1, 1), torch.ones(1, 16), torch.full((1, 16), -math.log(0.5) / 16))
    assert math.isclose(log_prob.exp().item(), 0.5, rel_tol=1e-6)
