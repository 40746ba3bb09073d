_base_ = './embedmask_r50_ms-2x_coco.py'

model = dict(
    backbone=dict(depth=101, init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron/resnet101_caffe'))
)

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type='ConstantLR', factor=1.0 / 3.0, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[28, 34], gamma=0.1),
]
