# What the compared models share: ResNet-18 and a feature pyramid of 64 channels, from scratch.
data_preprocessor = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_mask=True,
    pad_size_divisor=32,
)
backbone = dict(
    type='ResNet',
    depth=18,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    frozen_stages=-1,
    norm_cfg=dict(type='BN', requires_grad=True),
    norm_eval=False,
    style='pytorch',
)
# P3 to P7, as in FCOS.
neck = dict(
    type='FPN',
    in_channels=[64, 128, 256, 512],
    out_channels=64,
    start_level=1,
    add_extra_convs='on_output',
    num_outs=5,
    relu_before_extra_convs=True,
)
