"""The mask stage of inference against the authors' implementation, tests/data/masks.npz."""

import math
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
import torch.nn.functional as F

from embedmask_mmdet.ops import embedding_log_prob, instance_masks, instance_rles
from embedmask_mmdet.ops.mask_stage import box_cells

ARRAYS = dict(np.load(Path(__file__).parents[1] / 'data' / 'masks.npz'))
EMBEDDINGS = [torch.from_numpy(ARRAYS[name]) for name in ('pixel_embed', 'proposal_embed', 'proposal_margin')]
EMBEDDINGS[0] = EMBEDDINGS[0][0]
BBOXES = torch.from_numpy(ARRAYS['bboxes'])


def arguments(ori_shape):
    img_shape = tuple(ARRAYS['img_shape'].tolist())
    return dict(stride=8, img_shape=img_shape, ori_shape=ori_shape, mask_thr=float(ARRAYS['mask_thr']))


def test_log_prob_inside_boxes_is_the_reference():
    pixel_embed, proposal_embed, proposal_margin = EMBEDDINGS
    resized = F.interpolate(pixel_embed[None], scale_factor=2, mode='bilinear')[0]
    log_prob = embedding_log_prob(resized, proposal_embed, proposal_margin).numpy()
    expected = ARRAYS['log_prob']
    for i, (x1, y1, x2, y2) in enumerate(box_cells(BBOXES, expected.shape[-2:], 4).tolist()):
        np.testing.assert_allclose(log_prob[i, y1:y2, x1:x2], expected[i, y1:y2, x1:x2], rtol=1e-4, atol=1e-5)
        outside = np.ones(expected.shape[1:], dtype=bool)
        outside[y1:y2, x1:x2] = False
        assert (expected[i][outside] == -10).all()


@pytest.mark.parametrize('case', [0, 1, 2])
def test_masks_are_the_reference(case):
    ori_shape = tuple(ARRAYS[f'ori_shape{case}'].tolist())
    masks = instance_masks(*EMBEDDINGS, BBOXES, **arguments(ori_shape)).numpy()
    expected = np.unpackbits(ARRAYS[f'masks{case}'], axis=-1)[..., : ori_shape[1]].astype(bool)
    assert masks.shape == expected.shape
    assert (masks != expected).mean() <= 1e-4
    rles = instance_rles(*EMBEDDINGS, BBOXES, **arguments(ori_shape))
    assert rles == [pycocotools.mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]


def test_log_prob_of_a_pixel_with_the_proposals_embedding_is_zero():
    log_prob = embedding_log_prob(torch.full((16, 1, 1), 0.3), torch.full((1, 16), 0.3), torch.ones(1, 16))
    assert log_prob.item() == 0
    log_prob = embedding_log_prob(torch.zeros(16, 1, 1), torch.ones(1, 16), torch.full((1, 16), -math.log(0.5) / 16))
    assert math.isclose(log_prob.exp().item(), 0.5, rel_tol=1e-6)
