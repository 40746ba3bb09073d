# The small model for nuclei with EmbedMask plus. Its finest level already has 4 pixels per cell.
_base_ = ['./embedmask_r18_nuclei.py', './_base_/embedmask-plus.py']

model = _base_.plus
# The weights in the package were trained with these. For nuclei, they are as good as those of plus: docs/accuracy.md.
model.frame.type = 'EmbedMaskBoxFrame'
model.bbox_head.loss_bbox.loss_weight = 1.0
