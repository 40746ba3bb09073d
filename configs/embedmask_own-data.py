# Copy this file, change the lines below, and train. docs/own-data.md explains each step; the example is the nuclei.
_base_ = './embedmask_r50_1x_coco.py'

data_root = 'data/nuclei/'
# The names in "categories" of the annotation files. Keep the comma if there is one class.
classes = ('nucleus',)
train_ann_file, train_images = 'annotations/train.json', 'images/'
val_ann_file, val_images = 'annotations/test.json', 'images/'
# A checkpoint to start from, best one trained on COCO; it may have other classes. None: ImageNet weights.
load_from = None
# Images per iteration on one GPU, and iterations. The learning rate follows batch_size.
batch_size = 4
max_iters = 2000
# (longer, shorter) side that images are resized to for training and testing, in pixels. Small objects need more.
scales = [(1333, 640), (1333, 720), (1333, 800)]
test_scale = (1333, 800)

# You need not change anything below.
model = dict(bbox_head=dict(num_classes=len(classes)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=test_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=scale, keep_ratio=True)
    for scale in [tuple(round(factor * side) for side in test_scale) for factor in (0.8, 1, 1.2)]
]
train_dataloader = dict(
    batch_size=batch_size,
    # Endless, so that iterations do not depend on the number of images.
    sampler=dict(_delete_=True, type='InfiniteSampler'),
    dataset=dict(
        data_root=data_root,
        ann_file=train_ann_file,
        data_prefix=dict(img=train_images),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file=val_ann_file,
        data_prefix=dict(img=val_images),
        metainfo=dict(classes=classes),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + val_ann_file)
test_evaluator = val_evaluator

val_interval = max(max_iters // 10, 1)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval)
optim_wrapper = dict(optimizer=dict(lr=0.01 * batch_size / 16), clip_grad=dict(_delete_=True, max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=max_iters // 10),
    dict(
        type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[max_iters * 2 // 3, max_iters * 8 // 9]
    ),
]
auto_scale_lr = dict(base_batch_size=batch_size)

# Keep the last two checkpoints and the best one of all validations.
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=val_interval, max_keep_ckpts=2, save_best='coco/segm_mAP'),
)
log_processor = dict(by_epoch=False)
