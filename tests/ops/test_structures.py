"""RLEMasks in everything in MMDetection that takes a result, compared with the bool tensor that it replaces."""

import pickle

import mmcv
import numpy as np
import pycocotools.mask
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation import CocoMetric, DumpDetResults
from mmdet.structures import DetDataSample
from mmdet.structures.mask import mask2bbox
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData

from embedmask_mmdet.structures import RLEMasks, mask_bboxes

from .strategies import encode

H, W = 40, 56


def make_boxes_and_masks(count):
    bboxes = torch.tensor([[4.0 * i, 3.0 * i, 4.0 * i + 20, 3.0 * i + 15] for i in range(count)]).reshape(-1, 4)
    masks = torch.zeros(count, H, W, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, bboxes.long().tolist()):
        mask[y1:y2, x1:x2] = True
    return bboxes, masks


def make_sample(mask_format, count=4):
    bboxes, masks = make_boxes_and_masks(count)
    masks = masks if mask_format == 'bitmap' else RLEMasks(encode(masks), (H, W))
    pred = InstanceData(
        bboxes=bboxes, scores=torch.linspace(0.9, 0.2, count), labels=torch.arange(count) % 2, masks=masks
    )
    metainfo = dict(img_id=1, ori_shape=(H, W), img_path='image.jpg')
    return DetDataSample(pred_instances=pred, metainfo=metainfo)


def make_both(count=4):
    return make_sample('bitmap', count), make_sample('rle', count)


@pytest.mark.parametrize(
    'index',
    [
        torch.tensor([True, False, True, False]),
        torch.zeros(4, dtype=torch.bool),
        torch.tensor([3, 0, 0]),
        np.array([2, 1]),
        [1, 3],
        slice(1, 3),
        2,
        -1,
    ],
    ids=repr,
)
def test_instance_data_indexes_the_masks(index):
    bitmap, rle = (data_sample.pred_instances[index] for data_sample in make_both())
    assert isinstance(rle.masks, RLEMasks)
    assert rle.masks.shape == bitmap.masks.shape
    assert torch.equal(rle.masks.to_tensor(), bitmap.masks)


def test_instance_data_concatenates_the_masks():
    instances = make_sample('rle').pred_instances
    assert torch.equal(
        InstanceData.cat([instances[:1], instances[1:]]).masks.to_tensor(), make_sample('bitmap').pred_instances.masks
    )


@pytest.mark.parametrize('move', [lambda x: x.cpu(), lambda x: x.to('cpu'), lambda x: x.detach(), lambda x: x.clone()])
def test_moving_a_sample_keeps_the_rles(move):
    before = make_sample('rle')
    after = move(before).pred_instances.masks
    assert isinstance(after, RLEMasks)
    assert list(after) == list(before.pred_instances.masks) and after.shape == (4, H, W)


def test_items_are_coco_rles():
    masks = make_sample('rle').pred_instances.masks
    assert list(masks) == encode(make_boxes_and_masks(4)[1])
    assert all(isinstance(rle, dict) and rle['size'] == [H, W] for rle in masks)
    assert pycocotools.mask.area(list(masks)).tolist() == [300, 300, 300, 300]


def compute_coco_metric(data_sample):
    ground_truth = [
        dict(bbox=box, bbox_label=i % 2, ignore_flag=0, mask=rle)
        for i, (box, rle) in enumerate(zip(make_boxes_and_masks(4)[0].tolist(), encode(make_boxes_and_masks(4)[1])))
    ]
    metric = CocoMetric(metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=('a', 'b'))
    metric.process({}, [{**data_sample.to_dict(), 'instances': ground_truth}])
    metric.results = pickle.loads(pickle.dumps(metric.results))  # as collecting over processes does
    return metric.evaluate(size=1)


@pytest.mark.parametrize('count', [0, 2, 4])
def test_coco_metric_gives_the_same_numbers(count):
    bitmap, rle = (compute_coco_metric(data_sample) for data_sample in make_both(count))
    assert rle == bitmap
    if count == 4:
        assert rle['coco/segm_mAP'] > 0.99


@pytest.mark.parametrize('count', [0, 4])
def test_dump_det_results_writes_the_same_file(count, tmp_path):
    dumped = []
    for name, data_sample in zip(('bitmap', 'rle'), make_both(count)):
        metric = DumpDetResults(out_file_path=str(tmp_path / f'{name}.pkl'))
        metric.process({}, [data_sample.to_dict()])
        metric.evaluate(size=1)
        dumped.append(pickle.loads((tmp_path / f'{name}.pkl').read_bytes()))
    assert dumped[0][0]['pred_instances']['masks'] == dumped[1][0]['pred_instances']['masks']


@pytest.fixture
def visualizer():
    return DetLocalVisualizer(name='test_structures')


@pytest.mark.parametrize('count', [0, 4])
def test_visualizer_draws_the_same_picture(visualizer, count):
    pictures = []
    for data_sample in make_both(count):
        np.random.seed(0)
        visualizer.dataset_meta = dict(classes=('a', 'b'), palette=[(200, 0, 0), (0, 0, 200)])
        image = np.full((H, W, 3), 127, dtype=np.uint8)
        visualizer.add_datasample('image', image, data_sample, draw_gt=False, pred_score_thr=0.3)
        pictures.append(visualizer.get_image())
    np.testing.assert_array_equal(*pictures)
    assert (pictures[0] != 127).any() == (count > 0)


def test_visualization_hook_writes_a_picture(tmp_path):
    mmcv.imwrite(np.zeros((H, W, 3), dtype=np.uint8), str(tmp_path / 'image.jpg'))
    DetLocalVisualizer.get_instance('test_structures_hook').dataset_meta = dict(classes=('a', 'b'))
    hook = DetVisualizationHook(draw=True, test_out_dir='shown')
    data_sample = make_sample('rle')
    data_sample.set_metainfo(dict(img_path=str(tmp_path / 'image.jpg')))

    class Runner:
        timestamp = ''
        work_dir = str(tmp_path)

    hook.after_test_iter(Runner, 0, {}, [data_sample])
    assert mmcv.imread(str(tmp_path / 'shown' / 'image.jpg')).any()


@pytest.mark.parametrize('count', [0, 4])
def test_det_inferencer_gives_the_same_dict(count, visualizer, tmp_path, capsys):
    inferencer = DetInferencer.__new__(DetInferencer)  # its methods for results use no model
    inferencer.visualizer, inferencer.num_visualized_imgs, inferencer.num_predicted_imgs = visualizer, 0, 0
    results = []
    for data_sample in make_both(count):
        picture = inferencer.visualize(
            [np.zeros((H, W, 3), dtype=np.uint8)], [data_sample], return_vis=True, img_out_dir=str(tmp_path)
        )
        assert picture[0].shape == (H, W, 3)
        results.append(inferencer.postprocess([data_sample], print_result=True, pred_out_dir=str(tmp_path)))
    assert results[0] == results[1]
    assert len(results[1]['predictions'][0]['masks']) == count
    assert 'masks' in capsys.readouterr().out


@pytest.mark.parametrize('count', [0, 4])
def test_torch_functions_see_the_bitmaps(count):
    bitmap, rle = (data_sample.pred_instances.masks for data_sample in make_both(count))
    assert torch.equal(mask2bbox(rle.cpu()), mask2bbox(bitmap))
    assert rle.shape == bitmap.shape
    assert torch.equal(torch.stack([rle, rle]), torch.stack([bitmap, bitmap]))
    assert torch.equal(torch.logical_or(bitmap, other=rle), bitmap)


@pytest.mark.parametrize('count', [0, 4])
def test_masks_decode_to_the_bitmaps(count):
    bitmap, rle = (data_sample.pred_instances.masks for data_sample in make_both(count))
    assert rle.numpy().dtype == bool and rle.numpy().flags.c_contiguous
    np.testing.assert_array_equal(rle.numpy(), bitmap.numpy())
    assert rle.astype(np.uint8).dtype == np.uint8
    np.testing.assert_array_equal(rle.astype(np.uint8), bitmap.numpy())
    assert rle.to_tensor().dtype == torch.bool and torch.equal(rle.to_tensor(), bitmap)
    zeros = rle.new_zeros(2, 3)
    assert zeros.dtype == torch.bool and zeros.shape == (2, 3) and not zeros.any()
    assert rle.new_zeros((2, 3), dtype=torch.int64).dtype == torch.int64


def test_masks_are_a_sequence():
    rles = encode(make_boxes_and_masks(4)[1])
    masks = RLEMasks(tuple(rles), [H, W])
    assert len(masks) == 4 and list(masks) == rles and masks[-1] == rles[-1]
    assert isinstance(masks[1:3], RLEMasks) and list(masks[1:3]) == rles[1:3] and masks[1:1].shape == (0, H, W)
    joined = RLEMasks.cat([masks[2:], masks[:0], masks[:1]])
    assert list(joined) == [*rles[2:], rles[0]] and joined.shape == (3, H, W)
    assert isinstance(masks.shape, torch.Size) and masks.shape == (4, H, W)
    assert RLEMasks().shape == (0, 0, 0)
    rles.clear()
    assert len(masks) == 4


def test_masks_survive_pickling_and_to_dict():
    data_sample = make_sample('rle')
    masks = data_sample.to_dict()['pred_instances']['masks']
    assert masks is data_sample.pred_instances.masks
    copy = pickle.loads(pickle.dumps(masks))
    assert isinstance(copy, RLEMasks) and list(copy) == list(masks) and copy.shape == masks.shape


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_boxes_around_masks(mask_format):
    bboxes, masks = make_boxes_and_masks(4)
    masks[1] = False  # an empty mask
    masks[2] = False
    masks[2, H - 1, W - 1] = True  # a single pixel in the corner
    bboxes[1], bboxes[2] = 0, torch.tensor([W - 1, H - 1, W, H])
    masks[3] = True
    bboxes[3] = torch.tensor([0, 0, W, H])
    if mask_format == 'rle':
        masks = RLEMasks(encode(masks), (H, W))
    result = mask_bboxes(masks)
    assert result.dtype == torch.float32 and torch.equal(result, bboxes)
    none = mask_bboxes(masks[:0])
    assert none.shape == (0, 4) and none.dtype == torch.float32
