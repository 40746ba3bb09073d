# The small model for nuclei with EmbedMask plus. Its finest level already has 4 pixels per cell.
_base_ = ['./embedmask_r18_nuclei.py', './_base_/embedmask-plus.py']

model = _base_.plus
# The weights in the package were trained with this frame. For nuclei, that of plus is as good: docs/accuracy.md.
model.frame.type = 'EmbedMaskBoxFrame'
