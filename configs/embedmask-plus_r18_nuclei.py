# The small model of the nuclei with EmbedMask plus. Its finest level has 4 pixels per cell already.
_base_ = ['./embedmask_r18_nuclei.py', './_base_/embedmask-plus.py']

model = _base_.plus
