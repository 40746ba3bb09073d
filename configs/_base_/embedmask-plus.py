# EmbedMask plus: what differs from the paper's design, for any backbone and data. docs/accuracy.md compares both.
plus = dict(
    # Masks start as the ellipse in their box, and move in units of it.
    frame=dict(type='EmbedMaskScaledBoxFrame'),
    bbox_head=dict(
        # Classes and boxes learn from FCOS's own locations, and masks from the four best of them.
        sampling=dict(type='EmbedMaskBoxSampling', num_mask_locations=4),
        # Boxes have a size from the first iteration on.
        initial_distance=2.0,
        # Masks are placed with boxes, so boxes must learn first.
        loss_bbox=dict(loss_weight=2.0),
        margin_reduce_factor=4,
    ),
    mask_head=dict(
        # Masks are cut with boxes, so the loss ignores what is farther outside.
        box_padding=2,
        loss_mask=dict(_delete_=True, type='DiceCrossEntropyLoss'),
    ),
    test_cfg=dict(
        mask_thr=0.45,
        resize_prob=True,
        # A score falls if locations that see the same object disagree on its class.
        vote=dict(type='EmbedMaskClassVotes'),
        refine=[
            dict(type='EmbedMaskCertainty'),
            dict(type='EmbedMaskBoxesFromMasks', weight=0.7),
            # An object has one class, so a detection that overlaps a better one ranks lower, whatever its class.
            dict(type='EmbedMaskNMS', nms=dict(type='soft_nms', method='gaussian', sigma=0.5, class_agnostic=True)),
        ],
    ),
)
