# MMDetection's FCOS with a ResNet-18 and 64 channels.
_base_ = './r18-64.py'

from mmengine.hub import get_config  # noqa: E402 (`_base_` must come first)

model = get_config('mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py').model
model.update(data_preprocessor={{_base_.data_preprocessor}}, backbone={{_base_.backbone}}, neck={{_base_.neck}})
model.bbox_head.update(in_channels=64, feat_channels=64)
