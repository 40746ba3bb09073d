# EmbedMask plus for real time: a ResNet-18, and 64 channels in pyramid and towers.
_base_ = ['./embedmask_r18_light-ms-3x_coco.py', './_base_/embedmask-plus.py']

model = _base_.plus
model.neck = dict(out_channels=64)
model.bbox_head.update(in_channels=64, feat_channels=64)
norm_cfg = dict(type='GN', num_groups=16, requires_grad=True)
# Pixels have 4 input pixels per cell, as the backbone's finest stage, and few channels.
model.pixel_branch = dict(
    type='EmbedMaskPixelBranch', in_channels=64, level_channels=64, channels=32, norm_cfg=norm_cfg
)
model.mask_head.update(in_channels=32, feat_channels=32, stride=4, mask_scale=1, norm_cfg=norm_cfg)
model.frame.update(coord_scale=16)
