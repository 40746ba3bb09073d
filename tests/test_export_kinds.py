"""Other kinds of ONNX files give what PyTorch gives: preprocessed input, and the network alone."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from embedmask_mmdet.deployment import export
from embedmask_mmdet.deployment.calibration import find_images, make_inputs, read_images
from embedmask_mmdet.deployment.export import OPSETS, make_graph
from embedmask_mmdet.deployment.float16 import convert_to_float16
from embedmask_mmdet.deployment.int8 import Int8
from embedmask_mmdet.deployment.kinds import KINDS, fix_shape
from embedmask_mmdet.deployment.verify import compare
from embedmask_mmdet.errors import InputError
from tests import test_export_onnx
from tests.builders import COCO_CONFIG, PLUS_CONFIG
from tests.scripts import run_script
from tests.test_export_onnx import CONFIGS, PIPELINE, TOOL, build, draw

LEVELS = [f'{name}_{stride}' for name in ('cls_score', 'bbox_pred', 'centerness') for stride in (8, 16, 32, 64, 128)]

folder = test_export_onnx.folder


@pytest.fixture(scope='module')
def model():
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    return build(PLUS_CONFIG)


def open_graph(graph):
    import onnxruntime

    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])


def draw_batch(model, sizes):
    """Return images as the data preprocessor gives them."""
    images = [torch.from_numpy(draw(size, seed)).permute(2, 0, 1) for seed, size in enumerate(sizes)]
    samples = [DetDataSample(metainfo=dict(img_shape=size)) for size in sizes]
    return model.data_preprocessor(dict(inputs=images, data_samples=samples))['inputs']


def predict(model, inputs):
    """Detect in a preprocessed image."""
    size = tuple(inputs.shape[2:])
    metainfo = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    with torch.no_grad():
        return model(inputs, [DetDataSample(metainfo=metainfo)], mode='predict')[0].pred_instances


def check_maps(model, inputs, outputs):
    with torch.no_grad():
        *levels, pixel_embeds = model(inputs, mode='tensor')
    expected = [level for maps in levels for level in maps] + [pixel_embeds]
    assert len(outputs) == len(expected) == 26
    for output, wanted in zip(outputs, expected):
        torch.testing.assert_close(torch.from_numpy(output), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_detections_in_a_preprocessed_image(model, config):
    model = build(config)
    session = open_graph(make_graph(model, PIPELINE, {}, KINDS['tensor', 'image']))
    for size in [(64, 96), (128, 160)]:
        inputs = draw_batch(model, [size])
        deviation = compare(session.run(None, {'input': inputs.numpy()}), predict(model, inputs))
        assert deviation.num_detections > 5 and deviation.num_pixels > 100
        assert deviation.is_small, str(deviation)
    with pytest.raises(Exception, match='Got: 2 Expected: 1'):
        session.run(None, {'input': np.zeros((2, 3, 64, 96), np.float32)})


def test_raw_outputs_of_batches(model):
    session = open_graph(make_graph(model, PIPELINE, {}, KINDS['tensor', 'raw']))
    names = [output.name for output in session.get_outputs()]
    assert names[:15] == LEVELS and names[-1] == 'pixel_embed'
    for sizes in [[(64, 96)], [(96, 64)] * 3]:
        inputs = draw_batch(model, sizes)
        check_maps(model, inputs, session.run(None, {'input': inputs.numpy()}))


def test_raw_outputs_of_fixed_shape(model):
    session = open_graph(make_graph(model, PIPELINE, {}, fix_shape(KINDS['tensor', 'raw'], (2, 64, 96))))
    assert session.get_inputs()[0].shape == [2, 3, 64, 96]
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes['cls_score_16'] == [2, 2, 4, 6] and shapes['pixel_embed'] == [2, 16, 16, 24]
    inputs = draw_batch(model, [(64, 96)] * 2)
    check_maps(model, inputs, session.run(None, {'input': inputs.numpy()}))


def test_raw_outputs_of_an_image(model):
    session = open_graph(make_graph(model, PIPELINE, {}, KINDS['image', 'raw']))
    image = draw((48, 80))
    resized = torch.from_numpy(cv2.resize(image, (160, 96))).permute(2, 0, 1)
    samples = [DetDataSample(metainfo=dict(img_shape=(96, 160)))]
    inputs = model.data_preprocessor(dict(inputs=[resized], data_samples=samples))['inputs']
    check_maps(model, inputs, session.run(None, {'image': image}))


def test_detections_of_fixed_shape(model):
    graph = make_graph(model, PIPELINE, {}, fix_shape(KINDS['tensor', 'image'], (1, 64, 96)))
    session = open_graph(graph)
    assert session.get_inputs()[0].shape == [1, 3, 64, 96]
    bboxes, scores, _, masks = session.run(None, {'input': draw_batch(model, [(64, 96)]).numpy()})
    assert masks.shape == (len(bboxes), 64, 96) and len(scores) > 5


@pytest.mark.parametrize(
    'kind, shape, message',
    [
        (('image', 'raw'), (1, 64, 64), 'only tensors have a fixed shape.*`--input tensor`'),
        (('tensor', 'image'), (2, 64, 64), 'with 2 images cannot give detections.*or `--raw`'),
        (('tensor', 'raw'), (2, 50, 64), '2 images of 50x64. Heights and widths must be multiples of 32'),
        (('tensor', 'raw'), (0, 64, 64), '0 images'),
    ],
)
def test_wrong_shape(kind, shape, message):
    with pytest.raises(InputError, match=message):
        fix_shape(KINDS[kind], shape).build(build(COCO_CONFIG), PIPELINE)


def test_newest_opset(model):
    session = open_graph(make_graph(model, PIPELINE, {}, KINDS['tensor', 'image'], opset=OPSETS[-1]))
    inputs = draw_batch(model, [(64, 96)])
    deviation = compare(session.run(None, {'input': inputs.numpy()}), predict(model, inputs))
    assert deviation.num_detections > 5 and deviation.is_small, str(deviation)


def test_unknown_opset(model, monkeypatch):
    with pytest.raises(InputError, match='opset 99 cannot be written. Use one from 16 to 20'):
        make_graph(model, PIPELINE, {}, opset=99)
    monkeypatch.setattr(export, 'OPSETS', [99])
    with pytest.raises(InputError, match='PyTorch .* cannot write opset 99. Use 17'):
        make_graph(model, PIPELINE, {}, opset=99)


@pytest.fixture(scope='module')
def default_graph(model):
    return make_graph(model, PIPELINE, {})


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Write images to calibrate with, one of them broken."""
    folder = tmp_path_factory.mktemp('images')
    for seed in range(3):
        cv2.imwrite(str(folder / f'{seed}.png'), draw((70, 90), seed))
    (folder / 'broken.png').write_bytes(b'no image')
    return folder


def count_bytes(graph):
    return sum(weight.ByteSize() for weight in graph.graph.initializer)


def copy_graph(graph):
    return type(graph).FromString(graph.SerializeToString())


def check_graph(graph):
    import onnx

    onnx.checker.check_model(graph, full_check=True)


def test_float16_is_half_as_large_and_as_good(model, default_graph):
    graph = convert_to_float16(copy_graph(default_graph))
    assert count_bytes(graph) < 0.55 * count_bytes(default_graph)
    # In one of three or four images, a pixel at the edge of a mask moves its box by 0.7 pixels, whatever the frame.
    image = draw((70, 90), seed=1)
    check_graph(graph)
    before, after = (open_graph(each).run(None, {'image': image}) for each in (default_graph, graph))
    names = ('bboxes', 'scores', 'labels', 'masks')
    expected = InstanceData(**dict(zip(names, map(torch.from_numpy, before))))
    deviation = compare(after, expected)
    assert deviation.num_detections == deviation.num_expected > 5
    assert 0 < deviation.bboxes < 0.1 and deviation.scores < 2e-3 and deviation.pixels < 0.01 * deviation.num_pixels


def test_weights_that_others_share_stay_float32():
    """The exporter writes equal weights once."""
    onnx = pytest.importorskip('onnx')
    helper = onnx.helper
    names = ('/neck/conv/Conv', '/bbox_head/conv_cls/Conv')
    nodes = [
        helper.make_node('Conv', [source, 'weight'], [target], name=name)
        for name, source, target in zip(names, ('x', 'y'), ('y', 'z'))
    ]
    x, z = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2, 4, 4]) for name in 'xz')
    weight = onnx.numpy_helper.from_array(np.full((2, 2, 1, 1), 0.1, np.float32), 'weight')
    graph = helper.make_graph(nodes, 'test', [x], [z], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    half = convert_to_float16(copy_graph(model))
    check_graph(half)
    assert {weight.name for weight in half.graph.initializer} == {'weight', 'weight_half'}
    feed = {'x': np.ones((1, 2, 4, 4), np.float32)}
    (expected,), (found,) = (open_graph(each).run(None, feed) for each in (model, half))
    assert 0 < np.abs(found - expected).max() < 1e-4


def test_int8_is_a_quarter_as_large(default_graph, images, capsys):
    onnx = pytest.importorskip('onnx')
    graph = Int8(read_images(find_images(images)))(copy_graph(default_graph))
    onnx.checker.check_model(graph)
    assert 'skipped' in capsys.readouterr().err
    assert count_bytes(graph) < 0.35 * count_bytes(default_graph)
    assert {node.domain for node in graph.graph.node} == {''}
    after = {node.name: node.op_type for node in graph.graph.node}
    assert {'Conv', 'QuantizeLinear'} <= set(after.values())
    check_graph(graph)
    image = draw((70, 90))
    before, after = (open_graph(each).run(None, {'image': image}) for each in (default_graph, graph))
    assert len(after[0]) > 5
    # The best box is the same.
    assert np.abs(after[0][0] - before[0]).max(axis=1).min() < 3


def test_only_backbone_neck_and_towers_are_reduced(default_graph):
    float16 = convert_to_float16(copy_graph(default_graph))
    halves = {name.removesuffix('_half') for node in float16.graph.node for name in node.output if '_half' in name}
    sources = [node.name for node in default_graph.graph.node if halves.intersection(node.output)]
    assert any('layer4' in name for name in sources) and any('mask_convs' in name for name in sources)
    assert not any(word in name for name in sources for word in ('conv_cls', 'conv_reg', 'conv_embed', 'masks/', 'gn'))


def test_folder_without_images_is_named(tmp_path):
    with pytest.raises(InputError, match=f'{tmp_path} has no images to calibrate with'):
        find_images(tmp_path)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    with pytest.raises(InputError, match='no image to calibrate with can be read'):
        list(read_images(find_images(tmp_path)))


def test_calibration_inputs_are_preprocessed(model, images):
    inputs = list(make_inputs(KINDS['tensor', 'raw'], model, PIPELINE, read_images(find_images(images))))
    assert {array.shape for array in inputs} == {(1, 3, 96, 128)} and inputs[0].dtype == np.float32
    with pytest.raises(InputError, match='Leave out --shape or --int8'):
        make_inputs(fix_shape(KINDS['tensor', 'raw'], (1, 64, 64)), model, PIPELINE, iter([]))


TOOL_CASES = {
    'wrong opset': (['--opset', '99'], 'opset 99 cannot be written. Use one from 16 to 20'),
    'shape of an image': (['--shape', '1', '64', '64'], 'Add `--input tensor`'),
    'no images': (['--int8', 'nothing'], 'nothing has no images to calibrate with'),
    'verify': (['--raw', '--verify', 'image.png'], '--verify compares masks in images'),
}


@pytest.mark.parametrize('options, message', TOOL_CASES.values(), ids=TOOL_CASES)
def test_tool_explains_wrong_options(folder, options, message):
    (folder / 'nothing').mkdir(exist_ok=True)
    ran = run_script(TOOL, ['config.py', 'weights.pth', '--out', 'wrong.onnx', *options], folder)
    assert ran.code == 1 and 'Traceback' not in ran.stderr, ran.stderr[-2000:]
    assert message in ran.stderr.splitlines()[-1]
    assert not (folder / 'wrong.onnx').exists()


def test_tool_writes_other_kinds(folder, images):
    onnx = pytest.importorskip('onnx')
    options = ['--input', 'tensor', '--raw', '--int8', images]
    ran = run_script(TOOL, ['config.py', 'weights.pth', '--out', 'raw.onnx', *options], folder)
    assert ran.code == 0, ran.stderr[-2000:]
    written = onnx.load(folder / 'raw.onnx')
    assert [value.name for value in written.graph.input] == ['input']
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    preprocessing = json.loads(metadata['preprocessing'])
    assert preprocessing['pad_size_divisor'] == 32 and len(preprocessing['mean']) == 3
    assert any(node.op_type == 'DequantizeLinear' for node in written.graph.node)
