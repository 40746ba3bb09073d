"""Which locations learn from an instance, and which of them stand for it in the mask loss."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedmask_mmdet.models import EmbedMaskBoxSampling, EmbedMaskInMaskSampling
from embedmask_mmdet.targets import best_candidates, inside_masks
from tests.builders import batch, compute_losses, tiny_detector, tiny_model_cfg
from tests.reference import Heads, features, ground_truth

SIZE = (96, 128)


@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_several_best_candidates_of_each_instance(seed, count, num_gts, num_best):
    rng = np.random.default_rng(seed)
    gt_inds, quality = rng.integers(num_gts, size=count), rng.integers(4, size=count) / 4
    expected = []
    for gt in range(num_gts):
        candidates = sorted(np.flatnonzero(gt_inds == gt), key=lambda i: (-quality[i], i))
        expected += candidates[:num_best]
    actual = best_candidates(torch.from_numpy(gt_inds), torch.from_numpy(quality), num_gts, num_best)
    assert actual.tolist() == expected


def pick(sampling, gt_instances):
    """Return the targets and the positives of the reference's heads with a sampling."""
    heads = Heads().train()
    head = heads.bbox_head
    head.sampling = sampling
    proposals = head(features(), heads.frame)
    targets = head.assign(proposals, gt_instances)
    return targets, head.pick_positives(proposals, targets, gt_instances)


def test_mask_loss_gets_as_many_locations_as_told():
    counts = {}
    for number in (1, 2, 1000):
        targets, positives = pick(EmbedMaskInMaskSampling(number), ground_truth())
        counts[number] = len(positives)
        per_instance = torch.stack([positives.img_inds, positives.gt_inds]).unique(dim=1, return_counts=True)[1]
        assert (per_instance <= number).all()
    assert counts[1] < counts[2] <= 2 * counts[1]
    assert counts[1000] == sum(int((image.gt_inds >= 0).sum()) for image in targets)


def test_best_boxes_are_picked_first():
    _, few = pick(EmbedMaskBoxSampling(2), ground_truth())
    _, all_positives = pick(EmbedMaskBoxSampling(1000), ground_truth())
    for img, gt in set(zip(few.img_inds.tolist(), few.gt_inds.tolist())):
        ious = [p.ious[(p.img_inds == img) & (p.gt_inds == gt)] for p in (few, all_positives)]
        assert torch.equal(ious[0], ious[1].sort(descending=True)[0][:2])


def test_overlap_with_the_truth_counts_pixels_at_both_ends():
    _, positives = pick(EmbedMaskBoxSampling(1000), ground_truth())
    x1, y1, x2, y2 = positives.bboxes.double().T
    gt_x1, gt_y1, gt_x2, gt_y2 = positives.gt_bboxes.double().T
    width = (torch.minimum(x2, gt_x2) - torch.maximum(x1, gt_x1) + 1).clamp(min=0)
    height = (torch.minimum(y2, gt_y2) - torch.maximum(y1, gt_y1) + 1).clamp(min=0)
    areas = (x2 - x1 + 1) * (y2 - y1 + 1) + (gt_x2 - gt_x1 + 1) * (gt_y2 - gt_y1 + 1)
    torch.testing.assert_close(positives.ious.double(), width * height / (areas - width * height), rtol=1e-5, atol=1e-5)


def test_positives_have_the_boxes_and_points_of_their_locations():
    _, positives = pick(EmbedMaskBoxSampling(4), ground_truth())
    gts = ground_truth()
    expected = torch.stack([gts[img].bboxes[gt] for img, gt in zip(positives.img_inds, positives.gt_inds)])
    assert torch.equal(positives.gt_bboxes, expected)
    assert (positives.points >= positives.gt_bboxes[:, :2]).all()
    assert (positives.points <= positives.gt_bboxes[:, 2:]).all()
    assert not positives.bboxes.requires_grad and not positives.ious.requires_grad
    assert positives.proposal_embed.requires_grad and positives.proposal_margin.requires_grad


def test_only_locations_inside_the_mask_learn_in_the_paper_and_all_others_in_plus():
    striped = ground_truth()
    for gt_instances in striped:
        gt_instances.masks.masks[:, :, ::3] = 0
    head = Heads().bbox_head
    points = torch.cat(head._mlvl_points(features()))
    in_mask, _ = pick(EmbedMaskInMaskSampling(), striped)
    anywhere, _ = pick(EmbedMaskBoxSampling(), striped)
    for gt_instances, paper, plus in zip(striped, in_mask, anywhere):
        inside = inside_masks(gt_instances.masks, points)
        learns = paper.gt_inds >= 0
        assert inside[learns, paper.gt_inds[learns]].all()
        assert 0 < learns.sum() < (plus.gt_inds >= 0).sum()


def test_sampling_of_plus_does_not_look_at_masks():
    targets, _ = pick(EmbedMaskBoxSampling(), ground_truth())
    emptied = ground_truth()
    for gt_instances in emptied:
        gt_instances.masks.masks[:] = 0
    for image, other in zip(targets, pick(EmbedMaskBoxSampling(), emptied)[0]):
        assert torch.equal(image.gt_inds, other.gt_inds)


def test_instance_without_a_location_in_its_mask_has_a_box_in_plus():
    data = batch([SIZE], [1])
    data['data_samples'][0].gt_instances.masks.masks[:] = 0
    cfg = tiny_model_cfg()
    cfg.bbox_head.sampling = dict(type='EmbedMaskBoxSampling')
    assert compute_losses(tiny_detector(cfg), data)['loss_bbox'] > 0


@pytest.mark.parametrize('sampling', [EmbedMaskBoxSampling, EmbedMaskInMaskSampling])
def test_impossible_number_of_locations_is_named(sampling):
    with pytest.raises(ValueError, match='num_mask_locations must be at least 1, got 0'):
        sampling(num_mask_locations=0)


def test_defaults_are_those_of_the_paper_and_of_plus():
    assert EmbedMaskInMaskSampling().num_mask_locations == 1
    assert EmbedMaskBoxSampling().num_mask_locations == 4
