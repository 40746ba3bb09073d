"""One ONNX file gives what PyTorch gives, from image to masks."""

import json
import sys
from types import SimpleNamespace

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch.onnx.operators import shape_as_tensor

from embedmask_mmdet.deployment import grid
from embedmask_mmdet.deployment.export import correct_resizing, make_graph, trace
from embedmask_mmdet.deployment.kinds import DEFAULT_KIND, KINDS
from embedmask_mmdet.deployment.preprocessing import fit_size
from embedmask_mmdet.deployment.resizing import resize
from embedmask_mmdet.deployment.suppression import BatchedNMS
from embedmask_mmdet.deployment.verify import compare
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMaskBoxFrame, EmbedMaskNMS
from embedmask_mmdet.models.refine import PixelGrid
from embedmask_mmdet.runtime.masks import GridMasks
from tests.builders import (
    CLASSES,
    COCO_CONFIG,
    PLUS_CONFIG,
    ROOT,
    build_responsive_detector,
    draw_shapes,
    tiny_cfg,
    tiny_detector,
    tiny_model_cfg,
)
from tests.scripts import run_script

TOOL = ROOT / 'tools' / 'deployment' / 'export_onnx.py'
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
SIZES = {'of the traced image': (97, 131), 'enlarged': (50, 61), 'reduced': (231, 180), 'one row': (1, 9)}
CONFIGS = {'paper': COCO_CONFIG, 'plus': PLUS_CONFIG}


def build(config):
    """Build a detector that finds something; soft-NMS keeps most of it."""
    model = build_responsive_detector(config, nms=dict(type='nms', iou_threshold=0.5, offset=1))
    for refinement in model.mask_head.refinements:
        if isinstance(refinement, EmbedMaskNMS):
            refinement.nms.min_score = 1e-4
    return model


def predict(model, image):
    """Detect with PyTorch in an image, resized by OpenCV."""
    height, width = image.shape[:2]
    new_height, new_width = fit_size(torch.tensor([height, width]), PIPELINE[1]).tolist()
    resized = cv2.resize(image, (new_width, new_height))
    metainfo = dict(
        img_shape=(new_height, new_width),
        ori_shape=(height, width),
        scale_factor=(new_width / width, new_height / height),
    )
    data = dict(inputs=[torch.from_numpy(resized).permute(2, 0, 1)], data_samples=[DetDataSample(metainfo=metainfo)])
    return model.test_step(data)[0].pred_instances


def draw(size, seed=0):
    return draw_shapes(np.random.default_rng(seed), size, 3)[0]


def start(graph):
    """Return a function that runs an ONNX model."""
    onnxruntime = pytest.importorskip('onnxruntime')
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])
    return lambda image: session.run(None, {'image': image})


@pytest.fixture(scope='module', params=CONFIGS)
def exported(request):
    """Return a model, the ONNX model and what runs it."""
    pytest.importorskip('onnx')
    model = build(CONFIGS[request.param])
    graph = make_graph(model, PIPELINE, dict(classes=json.dumps(CLASSES)))
    return SimpleNamespace(model=model, graph=graph, run=start(graph))


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES)
def test_detections_are_those_of_pytorch(exported, size):
    image = draw(size)
    expected, outputs = predict(exported.model, image), exported.run(image)
    deviation = compare(outputs, expected)
    assert deviation.num_detections == deviation.num_expected > 5
    assert expected.masks.any() or min(size) == 1
    assert [output.dtype for output in outputs] == [np.float32, np.float32, np.int64, bool]
    assert outputs[3].shape == (len(expected), *size)
    assert (np.diff(outputs[1]) <= 0).all()
    assert deviation.bboxes < 1e-3 and deviation.scores < 1e-4 and not deviation.labels, str(deviation)
    assert deviation.pixels <= 5, str(deviation)
    assert deviation.is_small


def test_image_of_one_pixel(exported):
    bboxes, scores, labels, bitmaps = exported.run(np.full((1, 1, 3), 90, np.uint8))
    assert len(bboxes) == len(scores) == len(labels)
    assert bitmaps.shape == (len(bboxes), 1, 1)


def test_only_standard_operators(exported):
    assert {node.domain for node in exported.graph.graph.node} == {''}
    assert [opset.domain for opset in exported.graph.opset_import] == ['']


def run_grid(graph, image):
    """Return the outputs of a file with values on the grid, by name, and the masks made of them."""
    outputs = dict(zip([output.name for output in graph.graph.output], start(graph)(image)))
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert metadata['masks'] == 'grid'
    return outputs, GridMasks.from_outputs(outputs, image.shape[:2], float(metadata['threshold'])).to_array()


def test_grid_gives_the_same_masks(exported):
    graph = make_graph(exported.model, PIPELINE, {}, KINDS['image', 'grid'])
    for size in SIZES.values():
        image = draw(size)
        bboxes, scores, labels, bitmaps = exported.run(image)
        outputs, masks = run_grid(graph, image)
        np.testing.assert_array_equal(outputs['bboxes'], bboxes)
        np.testing.assert_array_equal(outputs['scores'], scores)
        np.testing.assert_array_equal(outputs['labels'], labels)
        assert (masks != bitmaps).sum() <= 5
        sides = outputs['grid_crops'][:, 2:] - outputs['grid_crops'][:, :2]
        assert sides.min() > 0
        assert outputs['values'].shape == (sides.prod(1).sum(),)
        assert (outputs['grid_crops'] >= 0).all() and (outputs['grid_crops'][:, 2:] <= outputs['grid_size'][::-1]).all()
        assert (outputs['crops'] >= 0).all() and (outputs['crops'][:, 2:] <= size[::-1]).all()


def test_grid_holds_every_cell_that_pixels_read(exported):
    outputs, _ = run_grid(make_graph(exported.model, PIPELINE, {}, KINDS['image', 'grid']), draw((231, 180)))
    size, scale = outputs['grid_size'][::-1], (outputs['grid_size'] / outputs['resized_size'])[::-1]
    first, last = ((pixels + 0.5) * scale - 0.5 for pixels in (outputs['crops'][:, :2], outputs['crops'][:, 2:] - 1))
    assert (np.floor(first).clip(min=0) >= outputs['grid_crops'][:, :2]).all()
    assert (np.ceil(last).clip(max=size - 1) < outputs['grid_crops'][:, 2:]).all()


@pytest.mark.parametrize('config', CONFIGS)
def test_boxes_cut_masks_as_in_pytorch(config):
    pytest.importorskip('onnx')
    model, image = build(CONFIGS[config]), draw((231, 180))
    with torch.no_grad():
        model.bbox_head.conv_margin.bias -= 5  # masks are wide
    expected = predict(model, image)
    deviation = compare(start(make_graph(model, PIPELINE, {}))(image), expected)
    assert deviation.num_detections == deviation.num_expected > 5 and expected.masks.any()
    assert deviation.pixels <= 5, str(deviation)


@pytest.mark.parametrize('config', CONFIGS)
def test_no_detection(config):
    pytest.importorskip('onnx')
    model, image = build(CONFIGS[config]), draw((40, 70))
    model.bbox_head.test_cfg.score_thr = 1.0
    outputs = start(make_graph(model, PIPELINE, {}))(image)
    assert [output.shape for output in outputs] == [(0, 4), (0,), (0,), (0, 40, 70)]
    outputs, masks = run_grid(make_graph(model, PIPELINE, {}, KINDS['image', 'grid']), image)
    assert outputs['crops'].shape == outputs['grid_crops'].shape == (0, 4)
    assert outputs['values'].shape == (0,) and masks.shape == (0, 40, 70)


@pytest.mark.parametrize('config', CONFIGS)
@pytest.mark.parametrize('count', [1, 300])
def test_number_of_detections(config, count):
    pytest.importorskip('onnx')
    model, image = build(CONFIGS[config]), draw((231, 180))
    model.bbox_head.test_cfg.update(max_per_img=count, nms=dict(type='nms', iou_threshold=0.99))
    for refinement in model.mask_head.refinements:
        if isinstance(refinement, EmbedMaskNMS):
            refinement.nms.min_score = 0.0
    deviation = compare(start(make_graph(model, PIPELINE, {}))(image), predict(model, image))
    assert deviation.num_detections == deviation.num_expected == count
    assert deviation.is_small, str(deviation)


def test_resize_is_that_of_opencv():
    rng = np.random.default_rng(0)
    for height, width, new_height, new_width in [(40, 60, 97, 31), (9, 1, 30, 30), (64, 64, 32, 32), (7, 8, 7, 8)]:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        sizes = torch.tensor([height, width]), torch.tensor([new_height, new_width])
        expected = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        assert (resize(torch.from_numpy(image), *sizes).numpy() == expected).all()


class Resizing(torch.nn.Module):
    """What the graph does with an image before the network sees it."""

    def __init__(self, resize_cfg):
        super().__init__()
        self.resize_cfg = resize_cfg

    def forward(self, image):
        shape = shape_as_tensor(image)[:2]
        return resize(image, shape, fit_size(shape, self.resize_cfg))


# In single precision, weights of pixels would differ in the first four images, and sizes in the last two.
RESIZED = {
    (512, 512): [(300, 256), (501, 700), (627, 580), (333, 457), (512, 341), (64, 64), (700, 9)],
    (1333, 800): [(21, 186), (21, 258)],
}


@pytest.mark.parametrize('scale', RESIZED)
def test_graph_resizes_as_mmcv(scale):
    resizing = Resizing(dict(scale=scale, keep_ratio=True))
    resizing.preparation = SimpleNamespace(
        name='image', axes={0: 'height', 1: 'width'}, example=torch.zeros(97, 131, 3, dtype=torch.uint8)
    )
    resizing.axes = {'resized': {0: 'height', 1: 'width'}}
    run = start(trace(resizing))
    rng = np.random.default_rng(0)
    for height, width in RESIZED[scale]:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        np.testing.assert_array_equal(run(image)[0], mmcv.imrescale(image, scale))


@pytest.mark.parametrize(
    'nms',
    [
        dict(type='nms', iou_threshold=0.3),
        dict(type='nms', iou_threshold=0.3, offset=1, class_agnostic=True, max_num=3),
        dict(type='soft_nms', method='gaussian', sigma=0.5, min_score=0.2),
        dict(type='soft_nms', method='gaussian', sigma=0.3, min_score=0.95, class_agnostic=True),
    ],
    ids=str,
)
def test_suppression_is_that_of_mmcv(nms):
    torch.manual_seed(0)
    corners = 40 * torch.rand(30, 2)
    results = InstanceData(
        bboxes=torch.cat([corners, corners + 5 + 20 * torch.rand(30, 2)], dim=1),
        scores=torch.rand(30) * 0.9,
        labels=torch.randint(2, (30,)),
    )
    expected = EmbedMaskNMS(Config(dict(nms=nms)).nms)(results.clone(), PixelGrid(torch.zeros(2, 1, 1), 8, 0.5))
    selected = BatchedNMS(nms, 'test')(results.clone())
    assert 0 < len(expected) < 30
    torch.testing.assert_close(selected.bboxes, expected.bboxes)
    torch.testing.assert_close(selected.scores, expected.scores)


def linear_soft_nms(model, pipeline):
    model.mask_head.refinements[-1].nms.method = 'linear'


def unknown_refinement(model, pipeline):
    model.mask_head.refinements.append(json)


def unknown_frame(model, pipeline):
    model.frame.__class__ = type('MyFrame', (EmbedMaskBoxFrame,), {})


def unknown_vote(model, pipeline):
    model.bbox_head.vote = json


def unknown_step(model, pipeline):
    pipeline.append(dict(type='Pad', size_divisor=64))


def unknown_model(model, pipeline):
    model.__class__ = type('MyEmbedMask', (type(model),), {})


@pytest.mark.parametrize(
    'change, message',
    [
        (linear_soft_nms, 'EmbedMaskNMS has .*linear.*, which cannot be exported'),
        (unknown_refinement, 'the refinement module cannot be exported. Remove it from test_cfg.refine'),
        (unknown_frame, 'the frame MyFrame cannot be exported'),
        (unknown_vote, 'the vote module in model.test_cfg cannot be exported. Use EmbedMaskClassVotes'),
        (unknown_step, "the test pipeline has .*'Pad'.*, which cannot be exported"),
        (unknown_model, 'MyEmbedMask cannot be exported'),
    ],
)
def test_what_cannot_be_exported_is_named(change, message):
    model, pipeline = build(PLUS_CONFIG), list(PIPELINE)
    change(model, pipeline)
    with pytest.raises(InputError, match=message):
        DEFAULT_KIND.build(model, pipeline)


@pytest.fixture(scope='module')
def deformable():
    """Return a detector whose deformable convolutions move their samples."""
    cfg = tiny_model_cfg()
    cfg.mask_head.dcn_on_last_conv = cfg.bbox_head.dcn_on_last_conv = True
    cfg.test_cfg.score_thr = 0.0
    model = tiny_detector(cfg).eval()
    for module in model.modules():
        if hasattr(module, 'conv_offset'):
            torch.nn.init.normal_(module.conv_offset.weight, std=0.3)
    return model


def test_deformable_convolutions_need_opset_19(deformable):
    pytest.importorskip('onnx')
    with pytest.raises(InputError, match='which ONNX has from opset 19 on, and this is opset 17'):
        make_graph(deformable, PIPELINE, {})


def test_deformable_convolutions_are_those_of_mmcv(deformable):
    pytest.importorskip('onnx')
    graph = make_graph(deformable, PIPELINE, {}, KINDS['tensor', 'raw'], opset=19)
    assert {node.domain for node in graph.graph.node} == {''}
    inputs = torch.randn(1, 3, 96, 128)
    onnxruntime = pytest.importorskip('onnxruntime')
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])
    outputs = dict(zip((output.name for output in session.get_outputs()), session.run(None, {'input': inputs.numpy()})))
    with torch.no_grad():
        *maps, pixel_embed = deformable(inputs, mode='tensor')
    assert np.allclose(outputs['pixel_embed'], pixel_embed.numpy(), atol=1e-4)
    assert np.allclose(outputs['cls_score_8'], maps[0][0].numpy(), atol=1e-4)
    assert not np.allclose(pixel_embed.numpy(), 0, atol=1e-2)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Write a config, its checkpoint and an image."""
    folder = tmp_path_factory.mktemp('export')
    cfg = tiny_cfg(folder, folder)
    cfg.model.test_cfg.update(score_thr=0.0, max_per_img=20)
    cfg.model.frame.coord_scale = 16
    cfg.dump(folder / 'config.py')
    checkpoint = dict(state_dict=build(COCO_CONFIG).state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES)))
    torch.save(checkpoint, folder / 'weights.pth')
    cv2.imwrite(str(folder / 'image.png'), draw((70, 90)))
    return folder


def test_tool_writes_and_verifies(folder):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    ran = run_script(TOOL, ['config.py', 'weights.pth', '--out', 'model.onnx', '--verify', 'image.png'], folder)
    assert ran.code == 0, ran.stderr[-2000:]
    assert 'written to model.onnx' in ran.stdout
    assert '20 detections, 20 with PyTorch' in ran.stdout
    metadata = {entry.key: entry.value for entry in onnx.load(folder / 'model.onnx').metadata_props}
    assert json.loads(metadata['classes']) == list(CLASSES)
    assert json.loads(metadata['thresholds']) == dict(score_thr=0.0, mask_thr=0.53)
    assert json.loads(metadata['versions'])['torch'] == torch.__version__
    assert "type='EmbedMask'" in metadata['config']


def test_verification_notices_other_masks(folder, monkeypatch):
    """The exit code says that the file differs."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(grid, 'BOX_PADDING', 0)
    ran = run_script(TOOL, ['config.py', 'weights.pth', '--out', 'other.onnx', '--verify', 'image.png'], folder)
    assert ran.code == 1 and not ran.stderr.count('Traceback'), ran.stderr[-2000:]
    assert '20 detections, 20 with PyTorch' in ran.stdout
    assert '0 of' not in ran.stdout and 'mask pixels differ' in ran.stdout


def test_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    ran = run_script(TOOL, ['config.py', 'weights.pth', '--out', 'none.onnx'], folder)
    assert ran.code == 1
    assert 'Install it with `pip install onnx onnxruntime`' in ran.stderr
    assert not (folder / 'none.onnx').exists()


def test_missing_folder_is_named(folder):
    ran = run_script(TOOL, ['config.py', 'weights.pth', '--out', 'no/model.onnx'], folder)
    assert ran.code == 1
    assert 'the folder no of --out does not exist' in ran.stderr


def test_resizing_to_one_pixel_is_corrected():
    onnx = pytest.importorskip('onnx')
    node = onnx.helper.make_node('Resize', ['x'], ['y'], coordinate_transformation_mode='pytorch_half_pixel')
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], 'test', [], []))
    correct_resizing(graph)
    assert graph.graph.node[0].attribute[0].s == b'half_pixel'


def test_what_a_user_made_is_not_written_over(folder):
    before = (folder / 'config.py').read_bytes()
    ran = run_script(TOOL, ['config.py', 'weights.pth', '--out', 'config.py'], folder)
    assert ran.code == 1 and '--out must end with .onnx, got config.py' in ran.stderr
    assert (folder / 'config.py').read_bytes() == before
