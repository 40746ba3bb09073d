# The nuclei's small model with what makes EmbedMask learn faster.
_base_ = './embedmask_r18_nuclei.py'

# As in embedmask-plus_r50_1x_coco.py. The finest level has 4 pixels a cell already.
model = dict(
    bbox_head=dict(
        sample_in_mask=False,
        num_mask_locations=4,
        box_centers=True,
        box_margins=True,
        guide_boxes=True,
        initial_distance=2.0,
        margin_reduce_factor=4,
    ),
    mask_head=dict(
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
