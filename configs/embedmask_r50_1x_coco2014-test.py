# Testing writes result files for the COCO server, work_dirs/coco2014_test/results.{bbox,segm}.json.
_base_ = './embedmask_r50_1x_coco2014.py'

test_dataloader = dict(dataset=_base_.coco2014.test)
test_evaluator = _base_.coco2014.test_evaluator
