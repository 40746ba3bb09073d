# To use COCO 2014 with another COCO config, replace the first base.
_base_ = ['./embedmask_r50_1x_coco.py', './_base_/datasets/coco_2014_instance.py']

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[dict(part, pipeline=_base_.train_pipeline) for part in _base_.coco2014.train],
    )
)
val_dataloader = dict(dataset=_base_.coco2014.val)
test_dataloader = val_dataloader
val_evaluator = _base_.coco2014.val_evaluator
test_evaluator = val_evaluator
