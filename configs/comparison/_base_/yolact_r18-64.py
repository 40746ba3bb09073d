# MMDetection's YOLACT with a ResNet-18 and 64 channels.
_base_ = './r18-64.py'

from mmengine.hub import get_config  # noqa: E402 (`_base_` must come first)

model = get_config('mmdet::yolact/yolact_r50_1xb8-55e_coco.py').model
model.update(data_preprocessor={{_base_.data_preprocessor}}, backbone={{_base_.backbone}}, neck={{_base_.neck}})
model.bbox_head.update(in_channels=64, feat_channels=64)
# Its own are those of images of 550 pixels.
model.bbox_head.anchor_generator.update(strides=[8, 16, 32, 64, 128], centers=None)
model.mask_head.in_channels = 64
