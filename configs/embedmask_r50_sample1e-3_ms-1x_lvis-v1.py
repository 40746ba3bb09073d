# LVIS v1, with the data settings of MMDetection's own LVIS configs.
_base_ = './embedmask_r50_1x_coco.py'

model = dict(
    bbox_head=dict(num_classes=1203),
    # LVIS evaluates 300 detections per image, and rare classes have low scores.
    test_cfg=dict(score_thr=1e-4, max_per_img=300),
)
tta_model = dict(tta_cfg=dict(max_per_img=300))

data_root = 'data/lvis_v1/'
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='EmbedMaskLoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, short_side) for short_side in (640, 672, 704, 736, 768, 800)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
# The images are those of COCO 2017, in `train2017` and `val2017` of data_root; annotations name them with the folder.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        # Images with rare classes are sampled more often.
        type='ClassBalancedDataset',
        oversample_thr=1e-3,
        dataset=dict(
            type='LVISV1Dataset',
            data_root=data_root,
            ann_file='annotations/lvis_v1_train.json',
            data_prefix=dict(img=''),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline,
        ),
    )
)
val_dataloader = dict(
    dataset=dict(
        type='LVISV1Dataset',
        data_root=data_root,
        ann_file='annotations/lvis_v1_val.json',
        data_prefix=dict(img=''),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(type='LVISMetric', ann_file=data_root + 'annotations/lvis_v1_val.json')
test_evaluator = val_evaluator

default_hooks = dict(
    packages=dict(
        type='EmbedMaskPackagesHook',
        packages={'lvis.eval': '--force-reinstall --no-deps git+https://github.com/lvis-dataset/lvis-api.git'},
    )
)
