# Copy this file, change the lines below, and train. `tools/misc/suggest_config.py` writes a copy that fits your data.
# docs/own-data.md explains each step; the example is the nuclei.
_base_ = './embedmask-plus_r50_1x_coco.py'

data_root = 'data/nuclei/'
# The names in "categories" of the annotation files. Keep the comma if there is one class.
classes = ('nucleus',)
train_ann_file, train_images = 'annotations/train.json', 'images/'
val_ann_file, val_images = 'annotations/test.json', 'images/'
# 'small': ResNet-18 from scratch. 'r50': ResNet-50 with ImageNet weights, for a GPU.
size = 'small'
# A checkpoint to start from, best one trained on COCO; it may be MMDetection's FCOS, and may have other classes.
load_from = None
# Images per iteration on one GPU, and iterations. The learning rate follows batch_size.
batch_size = 4
max_iters = 600
# (longer, shorter) side that images are resized to for training and testing, in pixels. Small objects need more.
scales = [(528, 352), (656, 448), (800, 528)]
test_scale = (656, 448)
# Pixels of a cell of the finest level: 8, or 4 if most objects are less than 24 pixels wide after resizing.
finest_stride = 8
# About the size of an object after resizing, from 8 to 32 pixels.
coord_scale = 32
# Detections per image: more than there are objects in any image.
max_per_img = 150

# You need not change anything below.
parts = dict(
    # A checkpoint to start from has a backbone, so no other one is downloaded.
    r50=dict(backbone=dict(init_cfg=None)) if load_from else dict(),
    small=dict(
        data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
        backbone=dict(
            depth=18,
            style='pytorch',
            # Nothing is pretrained, so nothing may be frozen. With weights: dict(type='Pretrained', checkpoint=FILE)
            init_cfg=None,
            frozen_stages=-1,
            norm_cfg=dict(type='BN', requires_grad=True),
            norm_eval=False,
        ),
        # Normalization lets a neck learn faster from scratch. GN also works with a batch of one small image.
        neck=dict(
            in_channels=[64, 128, 256, 512],
            out_channels=64,
            norm_cfg=dict(type='GN', num_groups=32, requires_grad=True),
        ),
        bbox_head=dict(in_channels=64, feat_channels=64),
        pixel_branch=dict(in_channels=64, level_channels=64),
    ),
)
model = parts[size]
# Each level of the neck finds objects of other sizes, with these bounds.
bounds = [finest_stride * cells for cells in (8, 16, 32, 64)]
model.setdefault('neck', {}).update(start_level={4: 0, 8: 1}[finest_stride])
model.setdefault('bbox_head', {}).update(
    num_classes=len(classes),
    strides=[finest_stride * 2**level for level in range(5)],
    regress_ranges=[(-1, bounds[0]), *((bound, 2 * bound) for bound in bounds[:3]), (bounds[3], 1e8)],
)
model.update(frame=dict(coord_scale=coord_scale), test_cfg=dict(max_per_img=max_per_img))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=test_scale, keep_ratio=True),
    dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=scale, keep_ratio=True)
    for scale in [tuple(round(factor * side) for side in test_scale) for factor in (0.8, 1, 1.2)]
]
tta_model = dict(tta_cfg=dict(max_per_img=max_per_img))
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
auto_scale_lr = dict(base_batch_size=batch_size)
optim_wrapper = dict(
    r50=dict(optimizer=dict(lr=0.01 * batch_size / 16), clip_grad=dict(_delete_=True, max_norm=10)),
    # SGD learns slowly from scratch.
    small=dict(
        _delete_=True,
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-3 * batch_size / 4, weight_decay=0.05),
        clip_grad=dict(max_norm=10),
    ),
)[size]
warm_up = min(max_iters // 10, 500)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, begin=warm_up, end=max_iters, eta_min=0)]
if warm_up > 1:
    param_scheduler.insert(0, dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up))

# Keep the last two checkpoints and the best one of all validations.
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=val_interval, max_keep_ckpts=2, save_best='coco/segm_mAP'),
)
log_processor = dict(by_epoch=False)
