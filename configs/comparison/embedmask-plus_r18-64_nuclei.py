_base_ = ['_base_/embedmask-plus_r18-64.py', '_base_/nuclei.py']

model = dict(bbox_head=dict(num_classes=1))
