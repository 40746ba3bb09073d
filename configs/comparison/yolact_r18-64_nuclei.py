_base_ = ['_base_/yolact_r18-64.py', '_base_/nuclei.py']

model = dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1))
