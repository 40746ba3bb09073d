"""Detections whose class is in doubt among the candidates of their object rank lower."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData

from embedmask_mmdet.models import EmbedMaskClassVotes
from embedmask_mmdet.models.class_votes import pairwise_ious
from tests.builders import PLUS_CONFIG, batch, build_responsive_detector, predict


def detections(*rows):
    """Build detections from rows of ``x1, y1, x2, y2, score, label``."""
    values = torch.tensor(rows).reshape(-1, 6)
    return InstanceData(bboxes=values[:, :4], scores=values[:, 4], labels=values[:, 5].long())


def test_votes_count_by_score_and_by_the_square_of_overlap():
    candidates = detections(
        (0.0, 0.0, 10.0, 10.0, 0.8, 1),
        (0.0, 0.0, 10.0, 10.0, 0.6, 2),
        (0.0, 0.0, 10.0, 5.0, 0.4, 2),  # half of it
        (50.0, 50.0, 60.0, 60.0, 0.9, 2),  # another object
    )
    voted = EmbedMaskClassVotes(weight=1)(candidates[torch.tensor([0, 1])], candidates)
    total = 0.8 + 0.6 + 0.4 / 4
    assert voted.scores.tolist() == pytest.approx([0.8 * 0.8 / total, 0.6 * 0.7 / total])
    halfway = EmbedMaskClassVotes()(candidates[torch.tensor([0])], candidates)
    assert halfway.scores.tolist() == pytest.approx([0.8 * (0.8 / total) ** 0.5])


def test_scores_stay_where_all_agree():
    candidates = detections(
        (0.0, 0.0, 10.0, 10.0, 0.8, 1), (1.0, 0.0, 10.0, 10.0, 0.3, 1), (5.0, 5.0, 5.0, 5.0, 0.7, 1)
    )
    voted = EmbedMaskClassVotes()(candidates[torch.tensor([0, 2])], candidates)
    assert torch.equal(voted.scores, candidates.scores[[0, 2]])


@pytest.mark.parametrize('num_candidates', [0, 1])
def test_no_detections(num_candidates):
    candidates = detections((0.0, 0.0, 10.0, 10.0, 0.8, 1))[:num_candidates]
    assert len(EmbedMaskClassVotes()(detections(), candidates)) == 0


boxes = st.lists(st.tuples(*[st.floats(0, 200, width=32)] * 4), min_size=1, max_size=9).map(
    lambda rows: torch.tensor([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in rows])
)


@given(bboxes=boxes, others=boxes)
def test_overlaps_are_those_of_mmdetection(bboxes, others):
    torch.testing.assert_close(pairwise_ious(bboxes, others), bbox_overlaps(bboxes, others, eps=1e-38))


def test_weight_out_of_range_is_named():
    with pytest.raises(ValueError, match='EmbedMaskClassVotes.weight must be from 0 to 1, got 2'):
        TASK_UTILS.build(dict(type='EmbedMaskClassVotes', weight=2))


def test_plus_votes():
    model = build_responsive_detector(PLUS_CONFIG)
    data = batch([(96, 128)], [3])
    (voted,) = predict(model, data)
    model.bbox_head.vote = None
    (unvoted,) = predict(model, data)
    assert len(set(voted.pred_instances.labels.tolist())) > 1
    assert voted.pred_instances.scores.max() < unvoted.pred_instances.scores.max()
