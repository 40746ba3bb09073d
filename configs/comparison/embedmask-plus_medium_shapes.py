_base_ = ['_base_/embedmask-plus_medium.py', '_base_/shapes.py']

model = dict(bbox_head=dict(num_classes=6))
