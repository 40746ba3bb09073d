"""Programs of torch.export, with a suppression between them, give what PyTorch gives."""

import io

import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.structures import DetDataSample

from embedmask_mmdet.deployment.program import export_masks, export_network
from tests.builders import COCO_CONFIG, PLUS_CONFIG, build_responsive_detector


def save_and_load(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize(
    'config', [PLUS_CONFIG, pytest.param(COCO_CONFIG, marks=pytest.mark.slow)], ids=['plus', 'paper']
)
def test_programs_give_the_detections_of_predict(config):
    model = build_responsive_detector(config)
    model.bbox_head.vote = None
    model.mask_head.refinements = []
    network, masks = save_and_load(export_network(model)), save_and_load(export_masks(model))
    torch.manual_seed(0)
    for batch_size, height, width in [(1, 160, 192), (2, 224, 160)]:
        inputs = torch.randn(batch_size, 3, height, width)
        metainfo = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        samples = [DetDataSample(metainfo=metainfo) for _ in inputs]
        with torch.no_grad():
            expected = model(inputs, samples, mode='predict')
            outputs = network(inputs)
            for sample, scores, bboxes, embeds, margins, pixel_embed in zip(expected, *outputs):
                scores, labels = scores.max(dim=1)
                order = scores.topk(100).indices
                _, kept = batched_nms(bboxes[order], scores[order], labels[order], model.test_cfg.nms)
                best = order[kept[:5]]
                found = masks(pixel_embed, embeds[best], margins[best], bboxes[best])
                wanted = sample.pred_instances[:5]
                torch.testing.assert_close(scores[best], wanted.scores)
                torch.testing.assert_close(bboxes[best], wanted.bboxes)
                assert (labels[best] == wanted.labels).all()
                assert wanted.masks.any() and (found != wanted.masks).sum() <= 5
        assert masks(pixel_embed, embeds[:0], margins[:0], bboxes[:0]).shape == (0, height, width)
