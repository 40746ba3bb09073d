# A small model, from scratch, on one image of small objects. `make demo` trains its variant with EmbedMask plus,
# embedmask-plus_r18_nuclei.py. For your own data copy embedmask_own-data.py, or this file if objects are as small.
_base_ = './embedmask_r50_1x_coco.py'

# Nuclei are about 20 pixels wide, so levels are finer than those for COCO: 4, 8 and 16 pixels per cell.
model = dict(
    # Padding has the color of the mean, here the gray of the background.
    data_preprocessor=dict(mean=[30.0, 30.0, 30.0], std=[50.0, 50.0, 50.0]),
    backbone=dict(
        depth=18,
        base_channels=32,
        stem_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        style='pytorch',
        # Nothing is pretrained, so nothing may be frozen.
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128], out_channels=64, start_level=0, num_outs=3),
    bbox_head=dict(
        num_classes=1,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=[4, 8, 16],
        regress_ranges=((-1, 64), (64, 128), (128, 1e8)),
    ),
    # About the size of the objects, so that embeddings separate neighbors from the start.
    frame=dict(coord_scale=16),
    mask_head=dict(in_channels=64, feat_channels=64, stacked_convs=2, stride=4),
)

data_root = 'data/nuclei/'
metainfo = dict(classes=('nucleus',), palette=[(0, 200, 83)])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True),
    # Crop before rotating, because rotating all masks of the complete image takes long.
    dict(type='RandomCrop', crop_size=(240, 240), recompute_bbox=True),
    dict(type='RandomResize', scale=(240, 240), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='Rotate', prob=0.75, max_mag=90.0, img_border_value=30),
    # Rotation makes boxes too large, so compute them from the masks again.
    dict(type='RandomCrop', crop_size=(192, 192), recompute_bbox=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=scale, keep_ratio=True) for scale in [(384, 384), (512, 512), (640, 640)]
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(_delete_=True, type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/test.json',
        data_prefix=dict(img='images/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/test.json')
test_evaluator = val_evaluator

max_iters = 450
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters, eta_min=0),
]
auto_scale_lr = dict(base_batch_size=4)

default_hooks = dict(logger=dict(interval=20), checkpoint=dict(by_epoch=False, interval=max_iters))
log_processor = dict(by_epoch=False, window_size=20)
visualizer = dict(line_width=1, alpha=0.5)
randomness = dict(seed=0)
