# MMDetection's Mask R-CNN with a ResNet-18 and 64 channels. Its pyramid begins with P2, as its RoIs expect.
_base_ = './r18-64.py'

from mmengine.hub import get_config  # noqa: E402 (`_base_` must come first)

model = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
model.update(data_preprocessor={{_base_.data_preprocessor}}, backbone={{_base_.backbone}})
model.neck.update(in_channels=[64, 128, 256, 512], out_channels=64)
model.rpn_head.update(in_channels=64, feat_channels=64)
model.roi_head.bbox_roi_extractor.update(out_channels=64)
model.roi_head.bbox_head.update(in_channels=64, fc_out_channels=256)
model.roi_head.mask_roi_extractor.update(out_channels=64)
model.roi_head.mask_head.update(in_channels=64, conv_out_channels=64)
