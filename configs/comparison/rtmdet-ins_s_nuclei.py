_base_ = ['_base_/rtmdet-ins_s.py', '_base_/nuclei.py']

model = dict(bbox_head=dict(num_classes=1))
