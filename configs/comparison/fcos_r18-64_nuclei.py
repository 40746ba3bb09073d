_base_ = ['_base_/fcos_r18-64.py', '_base_/nuclei.py']

model = dict(bbox_head=dict(num_classes=1))
# FCOS has no masks.
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
