# EmbedMask plus, which learns faster than the paper's design; docs/accuracy.md compares both with other models.
_base_ = ['./embedmask_r50_1x_coco.py', './_base_/embedmask-plus.py']

model = _base_.plus
# One more level, with 4 pixels per cell, for the pixels alone.
model.neck = dict(start_level=0, num_outs=6)
model.mask_head.update(feat_channels=128, stacked_convs=2, stride=4, mask_scale=1)
model.frame.update(coord_scale=16)
