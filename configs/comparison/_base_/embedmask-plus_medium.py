# EmbedMask plus, medium, from scratch.
_base_ = './r18-64.py'

import mmengine  # noqa: E402 (`_base_` must come first)

custom_imports = dict(imports=['embedmask_mmdet'], allow_failed_imports=False)
model = mmengine.Config.fromfile('{{fileDirname}}/../../embedmask-plus_medium_ms-3x_coco.py').model
model.update(data_preprocessor={{_base_.data_preprocessor}})
model.backbone.update(init_cfg=None, frozen_stages=-1, norm_eval=False)
# From scratch, a pyramid learns much faster with normalization.
model.neck.norm_cfg = dict(type='BN')
