# Testing writes result files for the COCO server, work_dirs/coco2017_test-dev/results.{bbox,segm}.json.
_base_ = ['./embedmask_r50_1x_coco.py', './_base_/datasets/coco_2017_instance.py']

test_dataloader = dict(dataset=_base_.coco2017.test)
test_evaluator = _base_.coco2017.test_evaluator
