# The same, but training starts from an FCOS that learned shapes. docs/accuracy.md has the commands.
_base_ = './embedmask-plus_r18-64_nuclei.py'

load_from = 'work_dirs/comparison/fcos_r18-64_shapes-400it/seed0/iter_400.pth'
# Moves each level of the neck to where it belongs.
custom_hooks = [dict(type='EmbedMaskCheckHook')]
# FCOS's pyramid has no normalization.
model = dict(neck=dict(norm_cfg=None))
