_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py', './_base_/tta.py']

custom_imports = dict(imports=['embedmask_mmdet'], allow_failed_imports=False)

model = dict(
    type='EmbedMask',
    data_preprocessor=dict(
        # The mean that the authors' checkpoints and the ImageNet weights below were trained with.
        mean=[102.9801, 115.9465, 122.7717]
    ),
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron/resnet50_caffe')),
    frame=dict(type='EmbedMaskLocationFrame', coord_scale=100, prior_margin=2.0),
    bbox_head=dict(
        type='EmbedMaskBBoxHead',
        embed_dim=16,
        margin_reduce_factor=32,
        sampling=dict(type='EmbedMaskInMaskSampling', num_mask_locations=1),
    ),
    mask_head=dict(
        type='EmbedMaskMaskHead',
        in_channels=256,
        feat_channels=256,
        stacked_convs=4,
        embed_dim=16,
        stride=8,
        mask_scale=2,
        box_padding=-1,
        loss_mask=dict(type='LovaszHingeLoss', loss_weight=0.5),
    ),
    test_cfg=dict(
        # The authors' code adds 1 to box sizes, in NMS too.
        nms=dict(type='nms', iou_threshold=0.6, offset=1),
        mask_thr=0.53,
        resize_prob=False,
        mask_format='bitmap',
        refine=[],
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

# 4 GPUs x 4 images
train_dataloader = dict(batch_size=4, num_workers=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
auto_scale_lr = dict(enable=False, base_batch_size=16)

val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

# The authors' rule for biases includes those of normalization layers; `bias_lr_mult` does not.
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, custom_keys={'.bias': dict(lr_mult=2.0, decay_mult=0.0)}))

param_scheduler = [
    dict(type='ConstantLR', factor=1.0 / 3.0, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]

# Training may be interrupted at any moment, and stops if a loss or a weight becomes NaN or infinite.
default_hooks = dict(
    checkpoint=dict(type='EmbedMaskCheckpointHook'),
    # Two folders may have images of the same name.
    visualization=dict(type='EmbedMaskVisualizationHook'),
)
custom_hooks = [
    dict(type='EmbedMaskCheckHook'),
    dict(type='EmbedMaskFiniteLossHook'),
    dict(type='EmbedMaskCompileHook'),
]
