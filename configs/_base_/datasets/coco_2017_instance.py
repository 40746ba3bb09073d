# COCO in the folders of 2017. Configs that inherit MMDetection's COCO configs already have `train` and `val`; `test` is
# test-dev. To use it, list this file in `_base_` and take `_base_.coco2017`, as embedmask_r50_1x_coco-test-dev.py does.
coco2017_root = 'data/coco/'
coco2017 = dict(
    train=[
        dict(
            type='CocoDataset',
            data_root=coco2017_root,
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
        ),
    ],
    val=dict(
        data_root=coco2017_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
    ),
    val_evaluator=dict(ann_file=coco2017_root + 'annotations/instances_val2017.json'),
    # Only the COCO server has the annotations, so testing writes result files instead of metrics.
    test=dict(
        data_root=coco2017_root,
        ann_file='annotations/image_info_test-dev2017.json',
        data_prefix=dict(img='test2017/'),
    ),
    test_evaluator=dict(
        ann_file=coco2017_root + 'annotations/image_info_test-dev2017.json',
        format_only=True,
        outfile_prefix='work_dirs/coco2017_test-dev/results',
    ),
)
