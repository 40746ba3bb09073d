_base_ = ['_base_/yolact_r18-64.py', '_base_/shapes.py']

model = dict(bbox_head=dict(num_classes=6), mask_head=dict(num_classes=6))
