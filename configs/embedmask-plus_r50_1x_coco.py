# EmbedMask with what makes it learn faster; docs/accuracy.md compares it with the reference's design and other models.
_base_ = './embedmask_r50_1x_coco.py'

model = dict(
    # One more level, of 4 pixels a cell, for the pixels alone.
    neck=dict(start_level=0, num_outs=6),
    bbox_head=dict(
        # Classes and boxes learn from FCOS's own locations, also where the centre is not on the mask, and masks from
        # the four best of them.
        sample_in_mask=False,
        num_mask_locations=4,
        # A location's mask begins as the ellipse in its box, which has an extent from the first iteration on.
        box_centers=True,
        box_margins=True,
        guide_boxes=True,
        initial_distance=2.0,
        coord_scale=16,
        margin_reduce_factor=4,
    ),
    mask_head=dict(
        feat_channels=128,
        stacked_convs=2,
        stride=4,
        mask_scale=1,
        # Masks are cut with boxes, so that the loss need not look at what is farther outside.
        box_padding=2,
        mask_target='coverage',
        loss_mask=dict(_delete_=True, type='DiceCrossEntropyLoss'),
    ),
    test_cfg=dict(
        mask_thr=0.45,
        resize_prob=True,
        score_masks=True,
        # Boxes are between those predicted and those around the masks. An object has one class, so what overlaps a
        # better detection ranks lower, whatever its class.
        mask_box_nms=dict(type='soft_nms', method='gaussian', sigma=0.5, class_agnostic=True),
        mask_box_weight=0.7,
    ),
)
