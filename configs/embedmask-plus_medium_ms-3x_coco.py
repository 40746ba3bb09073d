# EmbedMask plus for real time, the largest: a ResNet-34, 96 channels and towers of four convolutions.
_base_ = './embedmask-plus_small_ms-3x_coco.py'

model = dict(
    backbone=dict(depth=34, init_cfg=dict(checkpoint='mmcls://resnet34')),
    neck=dict(out_channels=96),
    bbox_head=dict(in_channels=96, feat_channels=96, stacked_convs=4),
    pixel_branch=dict(level_channels=96, channels=48),
    mask_head=dict(in_channels=48, feat_channels=48),
)
