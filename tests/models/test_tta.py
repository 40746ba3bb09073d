"""Several views of an image give one set of detections with masks."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from embedmask_mmdet.models.tta import flip_back
from tests.tiny import tiny_cfg, write_tiny_coco


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_test_time_augmentation_reports_segm(tmp_path, mask_format):
    cfg = tiny_cfg(write_tiny_coco(tmp_path / 'data'), tmp_path / 'work')
    cfg.model.test_cfg.update(score_thr=0.0, mask_format=mask_format, max_per_img=10)
    cfg.tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=(128, side), keep_ratio=True) for side in (64, 96)]
    # As `tools/test.py --tta` does it.
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    metrics = Runner.from_cfg(cfg).test()
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()


@pytest.mark.parametrize('direction, dims', [('horizontal', (2,)), ('vertical', (1,)), ('diagonal', (1, 2))])
def test_views_are_flipped_back(direction, dims):
    masks = torch.zeros(1, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 2:7] = True
    seen = masks.flip(dims)
    ys, xs = seen[0].nonzero(as_tuple=True)
    bboxes = torch.tensor([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]).float()
    results = InstanceData(bboxes=bboxes, masks=seen, scores=torch.ones(1), labels=torch.zeros(1).long())
    back = flip_back(results, dict(ori_shape=(6, 8), flip=True, flip_direction=direction))
    assert torch.equal(back.masks, masks)
    assert back.bboxes.tolist() == [[2.0, 1.0, 7.0, 3.0]]
