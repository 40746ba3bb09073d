# COCO in the folders of 2014, as the authors of EmbedMask use it. The images of train2014 and valminusminival are those
# of train2017, and minival is val2017. `tools/dataset_converters/coco2014.py` writes both lists, which COCO lacks.
# To use it, list this file in `_base_` and take `_base_.coco2014`, as embedmask_r50_1x_coco2014.py does.
coco2014_root = 'data/coco/'
coco2014 = dict(
    train=[
        dict(
            type='CocoDataset',
            data_root=coco2014_root,
            ann_file='annotations/instances_train2014.json',
            data_prefix=dict(img='train2014/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
        ),
        dict(
            type='CocoDataset',
            data_root=coco2014_root,
            ann_file='annotations/instances_valminusminival2014.json',
            data_prefix=dict(img='val2014/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
        ),
    ],
    val=dict(
        data_root=coco2014_root,
        ann_file='annotations/instances_minival2014.json',
        data_prefix=dict(img='val2014/'),
    ),
    val_evaluator=dict(ann_file=coco2014_root + 'annotations/instances_minival2014.json'),
    # Only the COCO server has the annotations, so testing writes result files instead of metrics.
    test=dict(
        data_root=coco2014_root,
        ann_file='annotations/image_info_test2014.json',
        data_prefix=dict(img='test2014/'),
    ),
    test_evaluator=dict(
        ann_file=coco2014_root + 'annotations/image_info_test2014.json',
        format_only=True,
        outfile_prefix='work_dirs/coco2014_test/results',
    ),
)
