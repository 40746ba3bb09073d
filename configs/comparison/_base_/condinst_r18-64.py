# MMDetection's CondInst with a ResNet-18 and 64 channels.
_base_ = './r18-64.py'

from mmengine.hub import get_config  # noqa: E402 (`_base_` must come first)

model = get_config('mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py').model
model.update(data_preprocessor={{_base_.data_preprocessor}}, backbone={{_base_.backbone}}, neck={{_base_.neck}})
model.bbox_head.update(in_channels=64, feat_channels=64)
model.mask_head.mask_feature_head.update(in_channels=64, feat_channels=64)
