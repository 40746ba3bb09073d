# EmbedMask plus with a ResNet-18 and 64 channels.
_base_ = './r18-64.py'

import mmengine  # noqa: E402 (`_base_` must come first)

custom_imports = dict(imports=['embedmask_mmdet'], allow_failed_imports=False)
model = mmengine.Config.fromfile('{{fileDirname}}/../../embedmask-plus_r50_1x_coco.py').model
model.update(data_preprocessor={{_base_.data_preprocessor}}, backbone={{_base_.backbone}})
# From scratch, a pyramid learns much faster with normalization. RTMDet's has it, too.
model.neck.update(in_channels=[64, 128, 256, 512], out_channels=64, norm_cfg=dict(type='BN'))
model.bbox_head.update(in_channels=64, feat_channels=64)
model.pixel_branch.update(in_channels=64, level_channels=64)
