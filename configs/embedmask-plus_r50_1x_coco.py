# EmbedMask plus, which learns faster than the paper's design; docs/accuracy.md compares both with other models.
_base_ = ['./embedmask_r50_1x_coco.py', './_base_/embedmask-plus.py']

model = _base_.plus
# Pixels have 4 input pixels per cell, as the backbone's finest stage, and few channels.
model.pixel_branch = dict(type='EmbedMaskPixelBranch', in_channels=256)
model.mask_head.update(
    in_channels=36,
    feat_channels=36,
    stacked_convs=2,
    norm_cfg=dict(type='GN', num_groups=12, requires_grad=True),
    stride=4,
    mask_scale=1,
)
model.frame.update(coord_scale=16)
