# EmbedMask plus for real time, the smallest: a ResNet-18 of half the channels. No pretrained weights have this width.
_base_ = './embedmask-plus_small_ms-3x_coco.py'

model = dict(
    backbone=dict(
        base_channels=32,
        stem_channels=32,
        init_cfg=None,
        frozen_stages=-1,
        norm_eval=False,
    ),
    neck=dict(in_channels=[32, 64, 128, 256]),
    pixel_branch=dict(in_channels=32),
    mask_head=dict(stacked_convs=1),
)
