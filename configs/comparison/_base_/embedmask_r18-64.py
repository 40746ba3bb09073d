# EmbedMask as in the paper, with a ResNet-18 and 64 channels.
_base_ = './r18-64.py'

import mmengine  # noqa: E402 (`_base_` must come first)

custom_imports = dict(imports=['embedmask_mmdet'], allow_failed_imports=False)
model = mmengine.Config.fromfile('{{fileDirname}}/../../embedmask_r50_1x_coco.py').model
model.update(data_preprocessor={{_base_.data_preprocessor}}, backbone={{_base_.backbone}}, neck={{_base_.neck}})
model.bbox_head.update(in_channels=64, feat_channels=64)
model.mask_head.update(in_channels=64, feat_channels=64)
