"""What public programs do with results, with bitmaps and with run lengths."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import InstanceData

from embedmask_mmdet.structures import RLEMasks
from tests.builders import ROOT
from tests.ops.strategies import encode

H, W = 40, 56
DOCUMENT = ROOT / 'docs' / 'clients.md'


def read_lines(document: Path) -> list[str]:
    """Return the lines about masks in the first block of a page."""
    block = re.search(r'^```python\n(.*?)^```', document.read_text(), re.M | re.S)[1]
    lines = block.partition('# to arrays')[2].splitlines()[1:]
    return [line for line in lines if line and not line.startswith('#')]


def make_instances(mask_format: str) -> InstanceData:
    """Make four detections that overlap."""
    bboxes = torch.tensor([[4.0 * i, 3.0 * i, 4.0 * i + 20, 3.0 * i + 15] for i in range(4)])
    masks = torch.zeros(4, H, W, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, bboxes.long().tolist()):
        mask[y1:y2, x1:x2] = True
    masks = masks if mask_format == 'bitmap' else RLEMasks(encode(masks), (H, W))
    return InstanceData(bboxes=bboxes, scores=torch.linspace(0.9, 0.2, 4), labels=torch.arange(4) % 2, masks=masks)


def run_line(line: str, mask_format: str) -> object:
    result = make_instances(mask_format)
    image = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)
    names = dict(cv2=cv2, np=np, torch=torch, image=image, result=result, masks=result.masks)
    return eval(line, dict(names, scores=result.scores, bboxes=result.bboxes))


def to_arrays(value: object) -> object:
    """Turn masks in any form, and what contains them, into arrays."""
    if isinstance(value, (list, tuple)):
        return [to_arrays(item) for item in value]
    return np.asarray(value.cpu()) if hasattr(value, 'cpu') else value


@pytest.mark.parametrize('line', read_lines(DOCUMENT))
def test_line_gives_the_same_with_run_lengths(line):
    bitmap, rle = (run_line(line, mask_format) for mask_format in ('bitmap', 'rle'))
    np.testing.assert_equal(to_arrays(rle), to_arrays(bitmap))
    assert getattr(rle, 'dtype', None) == getattr(bitmap, 'dtype', None)
    assert getattr(rle, 'shape', None) == getattr(bitmap, 'shape', None)


def test_choosing_keeps_run_lengths():
    lines = read_lines(DOCUMENT)
    chosen = [line for line in lines if re.fullmatch(r'(result|masks)\[(?!None|\.\.\.|:, |0\b|-1).*](\.masks)?', line)]
    assert len(chosen) >= 12
    for line in chosen:
        is_one = line == 'masks[torch.tensor(1)]'
        assert isinstance(run_line(line, 'rle'), dict if is_one else RLEMasks), line


def test_masks_have_the_methods_of_bitmap_masks():
    bitmap, rle = (make_instances(mask_format).masks for mask_format in ('bitmap', 'rle'))
    assert rle.to_ndarray().dtype == np.uint8 and np.array_equal(rle.to_ndarray(), bitmap.numpy())
    tensor = rle.to_tensor(torch.float32, 'cpu')
    assert tensor.dtype == torch.float32 and torch.equal(tensor, bitmap.float())


@pytest.mark.parametrize('index', [7, [0, 7], [True, False], torch.ones(3, dtype=torch.bool)])
def test_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError):
        make_instances('rle').masks[index]


def test_moved_masks_decode_elsewhere():
    masks = make_instances('rle').masks
    moved = masks.to('meta')
    assert moved.device.type == moved[0].device.type == moved[1:].device.type == 'meta'
    assert moved.float().device.type == 'meta' and moved.cpu().device.type == 'cpu'
    assert RLEMasks.cat([moved, moved]).device.type == 'meta'
    np.testing.assert_array_equal(moved.numpy(), masks.numpy())


def test_saved_masks_are_loaded_by_the_safe_unpickler(tmp_path):
    masks = make_instances('rle').masks
    torch.save({'all': masks, 'one': masks[1]}, tmp_path / 'masks.pth')
    loaded = torch.load(tmp_path / 'masks.pth', weights_only=True)
    assert isinstance(loaded['all'], RLEMasks) and list(loaded['all']) == list(masks)
    assert loaded['all'].shape == (4, H, W)
    assert type(loaded['one']).__module__ == 'collections' and loaded['one'] == masks[1]


def make_sample(mask_format: str) -> DetDataSample:
    return DetDataSample(pred_instances=make_instances(mask_format), metainfo=dict(img_id=1, ori_shape=(H, W)))


def to_supervision(mask_format: str) -> list:
    """Convert, choose and draw as supervision's users do."""
    supervision = pytest.importorskip('supervision')
    detections = supervision.Detections.from_mmdetection(make_sample(mask_format))
    detections = detections[detections.confidence > 0.3]
    picture = supervision.MaskAnnotator().annotate(np.zeros((H, W, 3), np.uint8), detections)
    return [detections.xyxy, detections.mask, detections.class_id, picture]


def to_tracker(mask_format: str) -> list:
    """Track still objects in three frames."""
    supervision, trackers = pytest.importorskip('supervision'), pytest.importorskip('trackers')
    tracker = trackers.ByteTrackTracker()
    detections = supervision.Detections.from_mmdetection(make_sample(mask_format))
    tracked = [tracker.update(detections) for _ in range(3)][-1]
    return [tracked.xyxy, tracked.mask]


def to_label_studio(mask_format: str) -> list:
    """Read detections one by one, as the backend's example for MMDetection does."""
    instances = make_sample(mask_format).pred_instances
    return [[item.bboxes.tolist(), float(item.scores), int(item['labels']), item.masks.numpy()] for item in instances]


def to_faster_coco_eval(mask_format: str) -> list:
    """Evaluate detections against themselves."""
    coco = pytest.importorskip('faster_coco_eval')
    instances = make_sample(mask_format).pred_instances
    encoded = encode_mask_results(instances.masks.numpy())
    annotations = [
        dict(id=i, image_id=1, category_id=1, iscrowd=0, area=300, bbox=[0, 0, 1, 1], segmentation=rle)
        for i, rle in enumerate(encoded, start=1)
    ]
    images = [dict(id=1, height=H, width=W)]
    truth = coco.COCO(dict(images=images, annotations=annotations, categories=[dict(id=1, name='a')]))
    rles = encoded if mask_format == 'bitmap' else [dict(rle) for rle in instances.masks]
    scored = [
        dict(image_id=1, category_id=1, score=float(score), segmentation=rle)
        for score, rle in zip(instances.scores, rles)
    ]
    evaluation = coco.COCOeval_faster(truth, truth.loadRes(scored), 'segm')
    evaluation.run()
    assert evaluation.stats[0] == pytest.approx(1)
    return evaluation.stats.tolist()


@pytest.mark.parametrize('client', [to_supervision, to_tracker, to_label_studio, to_faster_coco_eval])
def test_client_gives_the_same_with_run_lengths(client):
    np.testing.assert_equal(client('rle'), client('bitmap'))
