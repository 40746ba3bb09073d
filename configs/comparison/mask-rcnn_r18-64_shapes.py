_base_ = ['_base_/mask-rcnn_r18-64.py', '_base_/shapes.py']

model = dict(roi_head=dict(bbox_head=dict(num_classes=6), mask_head=dict(num_classes=6)))
