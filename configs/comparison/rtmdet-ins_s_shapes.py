_base_ = ['_base_/rtmdet-ins_s.py', '_base_/shapes.py']

model = dict(bbox_head=dict(num_classes=6))
