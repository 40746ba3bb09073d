# MMDetection's RTMDet-Ins s with its own backbone and neck, from scratch.
_base_ = './r18-64.py'

from mmengine.hub import get_config  # noqa: E402 (`_base_` must come first)

model = get_config('mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py').model
model.update(data_preprocessor={{_base_.data_preprocessor}})
model.backbone.init_cfg = None
# On one GPU or CPU, SyncBN is BN.
for part in (model.backbone, model.neck, model.bbox_head):
    part.norm_cfg.type = 'BN'
