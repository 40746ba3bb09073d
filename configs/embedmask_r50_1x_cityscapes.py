# Cityscapes, with the data settings and the schedule of MMDetection's own Cityscapes configs.
# It is better to start from weights trained on COCO: --cfg-options load_from=CHECKPOINT.
_base_ = './embedmask_r50_1x_coco.py'

model = dict(bbox_head=dict(num_classes=8))

data_root = 'data/cityscapes/'
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=[(2048, 800), (2048, 1024)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
    dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=scale, keep_ratio=True) for scale in [(2048, 800), (2048, 1024), (2048, 1200)]
]
# 4 GPUs x 2 images
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=8,
        dataset=dict(
            type='CityscapesDataset',
            data_root=data_root,
            ann_file='annotations/instancesonly_filtered_gtFine_train.json',
            data_prefix=dict(img='leftImg8bit/train/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='CityscapesDataset',
        data_root=data_root,
        ann_file='annotations/instancesonly_filtered_gtFine_val.json',
        data_prefix=dict(img='leftImg8bit/val/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(
        type='CocoMetric',
        ann_file=data_root + 'annotations/instancesonly_filtered_gtFine_val.json',
        metric=['bbox', 'segm'],
    ),
    # Cityscapes' own AP, computed from the label images in gtFine.
    dict(
        type='CityScapesMetric',
        seg_prefix=data_root + 'gtFine/val',
        outfile_prefix='./work_dirs/cityscapes_metric/instance',
    ),
]
test_evaluator = val_evaluator

# 8 epochs of 8 passes
train_cfg = dict(max_epochs=8)
optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [
    dict(type='ConstantLR', factor=1.0 / 3.0, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=8, by_epoch=True, milestones=[7], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=8)

default_hooks = dict(
    packages=dict(
        type='EmbedMaskPackagesHook',
        packages={
            'cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling': 'cityscapesscripts "numpy<2.4"',
        },
    )
)
