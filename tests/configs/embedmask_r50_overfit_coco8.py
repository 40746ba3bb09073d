"""The COCO config, trained from scratch on the 4 training images of coco8 and tested on the same 4."""

_base_ = '../../configs/embedmask_r50_1x_coco.py'

model = dict(backbone=dict(init_cfg=None, frozen_stages=-1, norm_eval=False, norm_cfg=dict(requires_grad=True)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(384, 256), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 256), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
# In-process loading of one batch that never changes.
loading = dict(num_workers=0, persistent_workers=False)
seen = dict(ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/'))
train_dataloader = dict(**loading, batch_sampler=None, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(**loading, dataset=dict(**seen, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/coco/annotations/instances_train2017.json')
test_evaluator = val_evaluator

iterations = 120
train_cfg = dict(max_epochs=iterations, val_interval=40)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=5e-4, weight_decay=1e-4),
    clip_grad=dict(_delete_=True, max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=iterations, eta_min=1e-5),
]
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=iterations, max_keep_ckpts=1))
