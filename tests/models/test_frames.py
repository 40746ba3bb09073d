"""Frames place spatial embeddings and margins where they say, in training and at inference alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from embedmask_mmdet.models import EmbedMaskBoxFrame, EmbedMaskLocationFrame, EmbedMaskScaledBoxFrame
from embedmask_mmdet.ops import embedding_log_prob
from tests.reference import INPUT_SIZE, Heads, features, ground_truth

SIDE = st.floats(8, 2000)
MIN_SIDE = 8
BOX_FRAMES = (EmbedMaskBoxFrame, EmbedMaskScaledBoxFrame)


def initial_prob(frame, bbox, location, points):
    """Probability of points ``(K, 2)`` when a location of an untrained head predicts a box."""
    others = torch.zeros(1, 14)
    embed = torch.cat([frame.embed_points(location[None]), others], dim=1)
    margin = torch.full_like(embed, frame.initial_margin)
    proposals = InstanceData(points=location[None], bboxes=bbox[None], proposal_embed=embed, proposal_margin=margin)
    placed = frame.place(proposals, MIN_SIDE)
    pixels = torch.cat([frame.embed_points(points), others.expand(len(points), -1)], dim=1)
    log_prob = embedding_log_prob(pixels.t()[:, None], placed.proposal_embed, placed.proposal_margin)
    return log_prob[0, 0].exp().detach()


@pytest.mark.parametrize('frame_type', BOX_FRAMES)
@given(SIDE, SIDE, st.floats(0.2, 0.8), st.sampled_from([16.0, 100.0]), st.sampled_from([1.0, 2.0]))
@settings(max_examples=40, deadline=None)
def test_initial_mask_is_the_ellipse_in_the_box_whatever_its_size(
    frame_type, width, height, off_center, coord_scale, prior_margin
):
    bbox = torch.tensor([0, 0, width, height]) + torch.tensor([300.0, 200.0]).repeat(2)
    u, v = torch.meshgrid(*[torch.linspace(-0.5, 0.5, 5)] * 2, indexing='xy')
    points = (bbox[:2] + bbox[2:]) / 2 + torch.stack([u, v], 2).view(-1, 2) * (bbox[2:] - bbox[:2])
    location = bbox[:2] + off_center * (bbox[2:] - bbox[:2])
    prob = initial_prob(frame_type(coord_scale, prior_margin), bbox, location, points)
    torch.testing.assert_close(prob, 0.5 ** (4 * (u**2 + v**2)).flatten(), rtol=1e-3, atol=1e-3)


def test_initial_mask_of_the_paper_is_a_disc_around_the_location():
    location, bbox = torch.tensor([60.0, 40.0]), torch.tensor([50.0, 30.0, 90.0, 60.0])
    points = location + torch.tensor([[0.0, 0.0], [200.0, 0.0], [0.0, -200.0]])
    prob = initial_prob(EmbedMaskLocationFrame(), bbox, location, points)
    torch.testing.assert_close(prob, torch.tensor([1.0, 0.5, 0.5]))


@given(SIDE, SIDE, st.floats(-0.5, 0.5), st.floats(0.5, 2))
@settings(max_examples=40, deadline=None)
def test_scaled_offset_moves_the_mask_by_the_same_part_of_every_box(width, height, offset, scale):
    frame = EmbedMaskScaledBoxFrame(coord_scale=16)
    with torch.no_grad():
        frame.scale.fill_(scale)
    location = torch.tensor([300.0, 200.0])
    sides = torch.tensor([width, height])
    proposals = InstanceData(
        points=location[None],
        bboxes=torch.cat([location - 0.25 * sides, location + 0.75 * sides])[None],
        # Two units are half a box in this frame.
        proposal_embed=(frame.embed_points(location) + scale * 4 * offset)[None].detach(),
        proposal_margin=torch.ones(1, 2),
    )
    placed = frame.place(proposals, MIN_SIDE)
    center = frame.locate_points(placed.proposal_embed)[0].detach()
    torch.testing.assert_close(center, location + (0.25 + offset) * sides, rtol=1e-4, atol=1e-2)


def test_boxes_smaller_than_a_cell_count_as_a_cell():
    location = torch.tensor([60.0, 40.0])
    points = location + torch.tensor([[0.0, 0.0], [MIN_SIDE / 2, 0.0], [0.0, MIN_SIDE / 2]])
    for bbox in ([60.0, 40.0, 60.0, 40.0], [61.0, 41.0, 59.0, 39.0], [58.0, 38.0, 62.0, 42.0]):
        prob = initial_prob(EmbedMaskBoxFrame(), torch.tensor(bbox), location, points)
        torch.testing.assert_close(prob, torch.tensor([1.0, 0.5, 0.5]))


def test_scale_of_the_frame_moves_locations_and_shifts_alike():
    frame = EmbedMaskBoxFrame(coord_scale=10)
    with torch.no_grad():
        frame.scale.fill_(3)
    proposals = InstanceData(
        points=torch.tensor([[20.0, 30.0]]),
        bboxes=torch.tensor([[10.0, 10.0, 50.0, 90.0]]),
        proposal_embed=torch.zeros(1, 3),
        proposal_margin=torch.ones(1, 3),
    )
    placed = frame.place(proposals, MIN_SIDE)
    # From the location to the center of the box: 10 and 20 pixels.
    torch.testing.assert_close(placed.proposal_embed, torch.tensor([[3.0, 6.0, 0.0]]))
    # Sides of 40 and 80 pixels; with prior_margin 2 and coord_scale 10 a unit is 40 pixels.
    torch.testing.assert_close(placed.proposal_margin, torch.tensor([[1.0, 0.25, 1.0]]))


@pytest.mark.parametrize(
    'frame_type, iou, blended',
    [(EmbedMaskBoxFrame, 0.25, [15, 30, 55, 100]), (EmbedMaskScaledBoxFrame, 0.5, [5, 10, 45, 60])],
)
def test_boxes_are_blended_with_the_truth_as_much_as_they_miss_it(frame_type, iou, blended):
    proposals = InstanceData(
        points=torch.tensor([[20.0, 20.0]] * 3),
        bboxes=torch.tensor([[0.0, 0.0, 40.0, 40.0]] * 3),
        gt_bboxes=torch.tensor([[20.0, 40.0, 60.0, 120.0]] * 3),
        ious=torch.tensor([0.0, iou, 1.0]),
        proposal_embed=torch.zeros(3, 16),
        proposal_margin=torch.ones(3, 16),
    )
    # Proposals add nothing to their location, so the frames differ in how they blend alone.
    proposals.proposal_embed[:, :2] = 20 / 100
    placed = frame_type().place_positives(proposals, MIN_SIDE)
    expected = [[20, 40, 60, 120], blended, [0, 0, 40, 40]]
    assert placed.bboxes.tolist() == expected
    bboxes = torch.tensor(expected, dtype=torch.float32)
    center = (bboxes[:, :2] + bboxes[:, 2:]) / 2
    torch.testing.assert_close(placed.proposal_embed[:, :2], center / 100)
    torch.testing.assert_close(placed.proposal_margin[:, :2], (400 / (bboxes[:, 2:] - bboxes[:, :2])).square())


def test_positives_of_the_paper_stay_where_they_are():
    proposals = InstanceData(proposal_embed=torch.zeros(3, 16), proposal_margin=torch.ones(3, 16))
    assert EmbedMaskLocationFrame().place_positives(proposals, MIN_SIDE) is proposals


@pytest.mark.parametrize('frame_type', [EmbedMaskLocationFrame, *BOX_FRAMES])
def test_training_and_inference_place_proposals_alike(frame_type):
    heads, frame = Heads(), frame_type()
    head = heads.bbox_head.train()
    proposals = head(features(), heads.frame)
    # Boxes that stay in the image, which inference would clip otherwise.
    proposals = proposals._replace(bbox_preds=[pred.detach().clamp(0.1, 0.5) for pred in proposals.bbox_preds])
    positives = head.pick_positives(proposals, head.assign(proposals, ground_truth()), ground_truth())
    positives.ious = torch.ones_like(positives.ious)
    positives = frame.place_positives(positives, head.strides[0])
    in_pixels = [pred * stride for pred, stride in zip(proposals.bbox_preds, head.strides)]
    cfg = ConfigDict(score_thr=0, nms_pre=-1)
    metas = [dict(img_shape=INPUT_SIZE)] * 2
    detections = head.predict_by_feat(proposals._replace(bbox_preds=in_pixels), metas, cfg, with_nms=False)
    for img, results in enumerate(detections):
        results = frame.place(results, head.strides[0])
        in_training = positives[positives.img_inds == img]
        assert len(in_training)
        for name in ('proposal_embed', 'proposal_margin'):
            distances = torch.cdist(in_training[name], results[name], p=torch.inf).amin(dim=1)
            assert (distances <= 1e-5 * in_training[name].abs().amax(dim=1)).all()


def test_located_points_are_those_that_were_embedded():
    frame = EmbedMaskLocationFrame(coord_scale=50.0)
    points = torch.tensor([[3.0, -7.0], [400.0, 0.5]])
    with torch.no_grad():
        frame.scale.fill_(1.7)
        assert frame.embed_points(points)[0].tolist() == pytest.approx([0.102, -0.238])
        torch.testing.assert_close(frame.locate_points(frame.embed_points(points)), points)
