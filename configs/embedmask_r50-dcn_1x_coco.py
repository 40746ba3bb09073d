_base_ = './embedmask_r50_1x_coco.py'

model = dict(
    backbone=dict(
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
    ),
    # The authors' USE_DCN_IN_TOWER.
    bbox_head=dict(dcn_on_last_conv=True),
    mask_head=dict(dcn_on_last_conv=True),
)
