"""Errors for bad arguments of the op, which name the argument."""

import pytest
import torch

from embedmask_mmdet.ops import (
    embedding_log_prob,
    instance_log_probs,
    instance_masks,
    instance_rles,
    point_log_prob,
)


def make_good():
    return dict(
        pixel_embed=torch.zeros(4, 5, 6),
        proposal_embed=torch.zeros(3, 4),
        proposal_margin=torch.ones(3, 4),
        bboxes=torch.zeros(3, 4),
        stride=8,
        img_shape=(40, 48),
        ori_shape=(20, 24),
    )


BAD = {
    'pixel_embed': [
        ([1.0], TypeError, 'list'),
        (torch.zeros(4, 5, 6, dtype=torch.int64), TypeError, 'torch.int64'),
        (torch.zeros(1, 4, 5, 6), ValueError, r'\(1, 4, 5, 6\)'),
        (torch.zeros(4, 0, 6), ValueError, r'\(4, 0, 6\)'),
        (torch.zeros(4, 5, 0), ValueError, r'\(4, 5, 0\)'),
        (torch.zeros(0, 5, 6), ValueError, r'\(0, 5, 6\)'),
    ],
    'proposal_embed': [
        (torch.zeros(3, 5), ValueError, r'\(N, 4\).*\(3, 5\)'),
        (torch.zeros(3), ValueError, r'\(3,\)'),
        (torch.tensor(1.0), ValueError, r'\(\)'),
        ([1.0], TypeError, 'list'),
        (torch.zeros(3, 4, device='meta'), ValueError, 'meta.*cpu'),
    ],
    'proposal_margin': [
        (torch.zeros(2, 4), ValueError, r'\(3, 4\).*\(2, 4\)'),
        (torch.zeros(3, 5), ValueError, r'\(3, 4\).*\(3, 5\)'),
        (torch.zeros(3, 4, device='meta'), ValueError, 'meta.*cpu'),
        (None, TypeError, 'NoneType'),
    ],
    'bboxes': [
        (torch.zeros(3, 5), ValueError, r'\(3, 4\).*\(3, 5\)'),
        (torch.zeros(2, 4), ValueError, r'\(3, 4\).*\(2, 4\)'),
        (torch.zeros(3, 4, dtype=torch.int32), TypeError, 'torch.int32'),
        (torch.zeros(3, 4, device='meta'), ValueError, 'meta.*cpu'),
    ],
    'stride': [(0, ValueError, '0'), (8.5, ValueError, '8.5')],
    'upscale': [(-1, ValueError, '-1'), (0, ValueError, '0'), (1.5, ValueError, '1.5')],
    'img_shape': [
        ((40, 48, 3), ValueError, r'\(40, 48, 3\)'),
        (40, TypeError, 'int'),
        ((41, 48), ValueError, r'\(41, 48\).*\(40, 48\).*stride 8'),
        ((40, 49), ValueError, r'\(40, 49\).*\(40, 48\).*stride 8'),
        ((0, 48), ValueError, r'\(0, 48\)'),
    ],
    'ori_shape': [
        ((20, 0), ValueError, r'\(20, 0\)'),
        ((20,), ValueError, r'\(20,\)'),
        ((20.5, 24), ValueError, '20.5'),
        ('ab', TypeError, 'str'),
    ],
    'mask_thr': [(value, ValueError, str(value)) for value in (0, 1, -0.1, 1.5, float('nan'))],
}


@pytest.mark.parametrize('op', [instance_masks, instance_rles, instance_log_probs])
@pytest.mark.parametrize('name, value, error, message', [(name, *case) for name in BAD for case in BAD[name]])
def test_mask_stage_names_the_argument_at_fault(op, name, value, error, message):
    with pytest.raises(error, match=f'(?s){name}.*{message}'):
        op(**{**make_good(), name: value})


@pytest.mark.parametrize('name', ['pixel_embed', 'proposal_embed', 'proposal_margin'])
def test_log_prob_names_the_argument_at_fault(name):
    tensors = {key: make_good()[key] for key in ('pixel_embed', 'proposal_embed', 'proposal_margin')}
    for value, error, message in BAD[name]:
        with pytest.raises(error, match=f'{name}.*{message}'):
            embedding_log_prob(**{**tensors, name: value})


@pytest.mark.parametrize(
    'name, value, error, message',
    [
        ('points_embed', [1.0], TypeError, 'list'),
        ('points_embed', torch.zeros(3, 4, 7), ValueError, r'\(3, 4, 7\)'),
        ('points_embed', torch.zeros(3, 4, 7, 0), ValueError, r'\(3, 4, 7, 0\)'),
        ('points_embed', torch.zeros(3, 4, 7, 7, dtype=torch.int32), TypeError, 'int32'),
        ('proposal_embed', torch.zeros(3, 5), ValueError, r'\(3, 4\).*\(3, 5\)'),
        ('proposal_margin', torch.zeros(1, 4), ValueError, r'\(3, 4\).*\(1, 4\)'),
    ],
)
def test_point_log_prob_names_the_argument_at_fault(name, value, error, message):
    good = dict(
        points_embed=torch.zeros(3, 4, 7, 7), proposal_embed=torch.zeros(3, 4), proposal_margin=torch.ones(3, 4)
    )
    assert point_log_prob(**good).shape == (3, 7, 7)
    with pytest.raises(error, match=f'{name}.*{message}'):
        point_log_prob(**{**good, name: value})


@pytest.mark.parametrize('shape', [[20, 24], torch.Size([20, 24])])
def test_good_arguments_pass(shape):
    arguments = {**make_good(), 'ori_shape': shape}
    assert instance_masks(**arguments).shape == (3, 20, 24)
    assert len(instance_rles(**arguments)) == 3
    # The smallest sizes and thresholds at both ends are good, too.
    smallest = dict(
        pixel_embed=torch.zeros(1, 1, 1), proposal_embed=torch.zeros(1, 1), proposal_margin=torch.ones(1, 1)
    )
    sizes = dict(bboxes=torch.zeros(1, 4), stride=1, upscale=1, img_shape=(1, 1), ori_shape=(1, 1))
    for mask_thr in (1e-9, 1 - 1e-9):
        assert instance_masks(**smallest, **sizes, mask_thr=mask_thr).all()
