"""The runtime makes the masks that PyTorch would, says what is wrong with its input, and needs neither of both."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from torch.nn import functional

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.runtime import Segmenter, __main__, masks
from embedmask_mmdet.runtime.drawing import draw_detections
from embedmask_mmdet.runtime.rle import encode
from tests.builders import ROOT

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

SIZE = (48, 64)
GRID, RESIZED = (6, 8), (50, 67)  # rows and columns of cells, and the pixels that they would be resized to
OUTSIDE, THRESHOLD = -10.0, -0.6
CLASSES = ('disc', 'rectangle')
# Cells that are not outside; each detection depends on one more on each side.
CELLS = np.array([[1, 1, 4, 3], [0, 0, 8, 6], [5, 2, 7, 6], [3, 3, 3, 3]])
BBOXES = np.array([[8, 8, 33, 25], [0, 0, 64, 48], [42, 17, 59, 48], [5, 5, 6, 6]], np.float32)
SCORES = np.array([0.9, 0.7, 0.4, 0.2], np.float32)
LABELS = np.array([0, 1, 1, 0])


def make_grids():
    """Make the complete mask grid of each detection, ``(N, rows, columns)``."""
    rng = np.random.default_rng(0)
    grids = np.full((len(CELLS), *GRID), OUTSIDE, np.float32)
    for grid, (x1, y1, x2, y2) in zip(grids, CELLS):
        grid[y1:y2, x1:x2] = -rng.random((y2 - y1, x2 - x1)) * 1.2
    return grids


def finish(threshold=THRESHOLD):
    """Make the masks from complete grids, as PyTorch does."""
    resized = functional.interpolate(torch.from_numpy(make_grids())[:, None], RESIZED, mode='bilinear')
    return (resized[:, 0, : SIZE[0], : SIZE[1]] > threshold).numpy()


def find_pixels(begin, end, num_cells, resized_size, num_pixels):
    """Find the first and the last pixel that lie between some cells, in one direction; the last is exclusive."""
    position = np.clip((np.arange(num_pixels) + 0.5) * num_cells / resized_size - 0.5, 0, num_cells - 1)
    inside = np.flatnonzero((position >= begin) & (position <= end - 1))
    return inside[0], inside[-1] + 1


def make_grid_outputs():
    """Make what a file that was exported with ``--masks grid`` gives for masks."""
    border = np.array([-1, -1, 1, 1])
    cells = np.clip(CELLS + border, 0, GRID[::-1] * 2)
    crops = [
        np.stack([find_pixels(*edges, *sizes) for edges, sizes in zip(edges, zip(GRID, RESIZED, SIZE))])[::-1].T
        for edges in (((y1, y2), (x1, x2)) for x1, y1, x2, y2 in cells)
    ]
    values = [grid[y1:y2, x1:x2].ravel() for grid, (x1, y1, x2, y2) in zip(make_grids(), cells)]
    return dict(
        crops=np.reshape(crops, (-1, 4)),
        grid_crops=cells,
        values=np.concatenate(values),
        grid_size=np.array(GRID),
        resized_size=np.array(RESIZED),
    )


def write_model(path, outputs, image_type=onnx.TensorProto.UINT8, **metadata):
    """Write an ONNX file that gives the same outputs for every image."""
    nodes = [
        onnx.helper.make_node('Constant', [], [name], value=onnx.numpy_helper.from_array(np.asarray(value)))
        for name, value in outputs.items()
    ]
    tensors = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in outputs.items()
    ]
    image = onnx.helper.make_tensor_value_info('image', image_type, ['height', 'width', 3])
    graph = onnx.helper.make_graph(nodes, 'detections', [image], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def select(outputs, count):
    """Keep the first detections of an image file's outputs."""
    return {name: value[:count] for name, value in outputs.items()}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Write the same detections to both kinds of file."""
    folder = tmp_path_factory.mktemp('models')
    detections = dict(bboxes=BBOXES, scores=SCORES, labels=LABELS)
    image_outputs = {**detections, 'masks': finish()}
    metadata = dict(classes=json.dumps(CLASSES))
    grid = {**metadata, 'masks': 'grid', 'threshold': repr(THRESHOLD)}
    write_model(folder / 'none.onnx', select(image_outputs, 0), **metadata)
    nothing = {**select({**detections, **make_grid_outputs()}, 0), 'grid_size': np.array(GRID)}
    write_model(folder / 'none-grid.onnx', {**nothing, 'resized_size': np.array(RESIZED)}, **grid)
    write_model(folder / 'image.onnx', image_outputs, **metadata)
    write_model(folder / 'grid.onnx', {**detections, **make_grid_outputs()}, **grid)
    write_model(folder / 'float.onnx', image_outputs, onnx.TensorProto.FLOAT)
    write_model(folder / 'boxes.onnx', detections)
    write_model(folder / 'other.onnx', image_outputs, masks='polygons')
    (folder / 'cut.onnx').write_bytes((folder / 'grid.onnx').read_bytes()[:300])
    (folder / 'text.onnx').write_text('no model')
    (folder / 'empty.onnx').touch()
    return folder


def draw(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture(params=['image.onnx', 'grid.onnx'])
def detections(request, files):
    return Segmenter(files / request.param, threads=1)(draw())


# Detections


def test_masks_are_those_of_pytorch(detections):
    expected = finish()
    assert expected[:3].any((1, 2)).all() and not expected[3].any()
    assert detections.masks.dtype == bool
    np.testing.assert_array_equal(detections.masks, expected)
    np.testing.assert_array_equal(detections.bboxes, BBOXES)
    assert detections.class_names == CLASSES and detections.image_shape == SIZE


def test_small_blocks_give_the_same(files, monkeypatch):
    monkeypatch.setattr(masks, 'BLOCK_SIZE', 100)
    np.testing.assert_array_equal(Segmenter(files / 'grid.onnx')(draw()).masks, finish())


def test_run_lengths_are_those_of_pycocotools(detections):
    expected = pycocotools.mask.encode(np.asfortranarray(finish().transpose(1, 2, 0).astype(np.uint8)))
    assert detections.rles == expected


@pytest.mark.parametrize(
    'index, expected',
    [
        (SCORES > 0.3, [0, 1, 2]),
        (slice(1, 3), [1, 2]),
        (-1, [3]),
        ([2, 0], [2, 0]),
        ([True, False, False, True], [0, 3]),
        (np.array([], int), []),
        (LABELS == 7, []),
    ],
    ids=str,
)
def test_indexing(detections, index, expected):
    chosen = detections[index]
    assert len(chosen) == len(expected) == len(chosen.rles)
    for name in ('bboxes', 'scores', 'labels', 'masks'):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(detections, name)[expected])


def test_wrong_index(detections):
    with pytest.raises(IndexError):
        detections[4]
    assert [len(detection) for detection in detections] == [1, 1, 1, 1]


def test_description(detections):
    assert repr(detections) == 'Detections(2 disc, 2 rectangle; image of 64x48 pixels)'


@pytest.mark.parametrize('name', ['none.onnx', 'none-grid.onnx'])
def test_no_detection(files, name):
    detections = Segmenter(files / name)(draw())
    assert detections.masks.shape == (0, *SIZE) and detections.masks.dtype == bool
    assert detections.rles == detections.to_coco(1) == []
    assert len(detections[detections.scores > 0.5]) == 0


def test_coco_entries(detections):
    first = json.loads(json.dumps(detections.to_coco(image_id=7)))[0]
    assert first['image_id'] == 7 and first['category_id'] == 1 and first['score'] == pytest.approx(0.9)
    assert first['bbox'] == [8, 8, 25, 17]
    np.testing.assert_array_equal(pycocotools.mask.decode(first['segmentation']), finish()[0])
    assert [entry['category_id'] for entry in detections.to_coco(7, category_ids=(30, 40))] == [30, 40, 40, 30]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_mask_is_encoded_as_by_pycocotools(data):
    size = st.integers(1, 12)
    height, width = data.draw(size), data.draw(size)
    x, y, right, below = (data.draw(st.integers(0, 3)) for _ in range(4))
    pixels = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    bitmap = np.array(pixels).reshape(height, width)
    complete = np.pad(bitmap, ((y, below), (x, right)))
    scale = data.draw(st.sampled_from([1, 90]))  # for run lengths of several characters
    bitmap, complete = (np.kron(each, np.ones((scale, scale), bool)) for each in (bitmap, complete))
    expected = pycocotools.mask.encode(np.asfortranarray(complete.astype(np.uint8)))
    other = masks.Crop((0, 0), np.ones((1, 1), bool))
    assert encode([other, masks.Crop((x * scale, y * scale), bitmap), other], complete.shape)[1] == expected


@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_resize_is_that_of_pytorch(num_cells, resized_size, seed):
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal((num_cells, 1)).astype(np.float32))
    expected = functional.interpolate(values[None, None], (resized_size, 1), mode='bilinear')[0, 0].numpy()
    axis = masks.Axis.make(resized_size, num_cells, resized_size)
    np.testing.assert_allclose(masks.resize_rows(values.numpy(), axis), expected, atol=1e-5)
    np.testing.assert_allclose(masks.resize_columns(values.numpy().T, axis), expected.T, atol=1e-5)


def test_another_threshold_of_masks(files, tmp_path):
    segmenter = Segmenter(files / 'grid.onnx')
    detections = segmenter(draw())
    assert segmenter.mask_threshold == pytest.approx(np.exp(THRESHOLD))
    np.testing.assert_array_equal(detections.cut_masks_at(segmenter.mask_threshold).masks, finish())
    np.testing.assert_array_equal(detections.cut_masks_at(np.exp(-0.3)).masks, finish(-0.3))
    assert (finish(-0.3) != finish()).any() and len(detections.cut_masks_at(0.99)[:2]) == 2

    outputs = dict(bboxes=BBOXES, scores=SCORES, labels=LABELS, **make_grid_outputs())
    outputs['values'] = np.exp(outputs['values'])  # a file with resize_prob
    write_model(tmp_path / 'probabilities.onnx', outputs, masks='grid', threshold='0.55')
    segmenter = Segmenter(tmp_path / 'probabilities.onnx')
    assert segmenter.mask_threshold == 0.55
    first, second = (segmenter(draw()).cut_masks_at(probability).masks for probability in (0.3, 0.8))
    assert first[:3].any((1, 2)).all() and not (second & ~first).any() and (first != second).any()


def test_bitmaps_have_no_other_threshold(files):
    segmenter = Segmenter(files / 'image.onnx')
    assert segmenter.mask_threshold is None
    with pytest.raises(InputError, match='fixed threshold. Export it with --masks grid'):
        segmenter(draw()).cut_masks_at(0.5)


# Input


def test_images_in_every_form(files, tmp_path):
    segmenter = Segmenter(files / 'grid.onnx')
    cv2.imwrite(str(tmp_path / 'color.png'), draw())
    cv2.imwrite(str(tmp_path / 'gray.png'), draw()[..., 0])
    images = [str(tmp_path / 'color.png'), tmp_path / 'gray.png', draw(), draw()[:, ::-1]]
    several = segmenter(images)
    assert [len(detections) for detections in several] == [4] * 4
    np.testing.assert_array_equal(several[1].masks, finish())
    assert segmenter([]) == []


IMAGES = {
    'float': (draw() / np.float32(255), 'the image is float32, it must be uint8. Convert it with np.clip'),
    'int64': (draw().astype(int), 'the image is int64, it must be uint8. Convert it with image.astype'),
    '16 bits': (draw().astype(np.uint16), 'Convert it with .image >> 8.'),
    'gray': (draw()[..., 0], 'shape .48, 64., it must be .* in BGR. Convert it with .*GRAY2BGR'),
    'one channel': (draw()[..., :1], 'Convert it with cv2.cvtColor.image, cv2.COLOR_GRAY2BGR'),
    'alpha': (np.dstack([draw(), draw()[..., 0]]), 'Convert it with cv2.cvtColor.image, cv2.COLOR_BGRA2BGR'),
    'channels first': (draw().transpose(2, 0, 1), 'shape .3, 48, 64., it must be'),
    'empty': (draw()[:0], 'shape .0, 64, 3., it must be'),
    'batch': (draw()[None], 'is a batch. Pass a list of images: list.images.'),
    'tensor': (torch.from_numpy(draw()), 'got Tensor. Convert it with np.asarray'),
    'nothing': (None, 'an image must be an array of numpy or the path of a file, got NoneType'),
}


@pytest.mark.parametrize('image, message', IMAGES.values(), ids=IMAGES)
def test_wrong_image_is_explained(files, image, message):
    with pytest.raises(InputError, match=message) as raised:
        Segmenter(files / 'grid.onnx')(image)
    assert '\n' not in str(raised.value)


def test_file_that_is_no_image(files, tmp_path):
    segmenter = Segmenter(files / 'grid.onnx')
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(InputError, match='not a complete image'):
        segmenter(tmp_path / 'text.png')
    with pytest.raises(FileNotFoundError, match='missing.png'):
        segmenter(tmp_path / 'missing.png')


@pytest.mark.parametrize(
    'name, message',
    [
        ('cut.onnx', 'cut.onnx cannot be loaded: it is incomplete or not an ONNX file .*. Copy it again'),
        ('text.onnx', 'text.onnx cannot be loaded'),
        ('empty.onnx', 'empty.onnx cannot be loaded'),
        ('missing.onnx', 'missing.onnx does not exist'),
        ('float.onnx', 'float.onnx is not a file that takes an image and gives masks'),
        ('boxes.onnx', 'it takes image and gives bboxes, scores, labels. Write it with'),
        ('other.onnx', 'other.onnx is not a file that takes an image and gives masks'),
    ],
)
def test_wrong_model_is_explained(files, name, message):
    with pytest.raises(InputError, match=message) as raised:
        Segmenter(files / name)
    assert '\n' not in str(raised.value)


def test_missing_provider_is_named(files):
    with pytest.raises(InputError, match='this onnxruntime has no MyProvider. It has .*CPUExecutionProvider'):
        Segmenter(files / 'grid.onnx', providers=['MyProvider'])


def test_missing_onnxruntime_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(InputError, match='Install it with `pip install onnxruntime`'):
        Segmenter(files / 'grid.onnx')


def test_error_of_onnxruntime_is_one_line(files):
    with pytest.raises(InputError, match='grid.onnx fails for an image of 64x48 pixels') as raised:
        Segmenter(files / 'grid.onnx')._run(draw()[..., 0])
    assert '\n' not in str(raised.value)


# The command


@pytest.fixture
def run(files, tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder of its own; return what it printed, or raise what ended it."""

    def run(model, *args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['runtime', str(files / model), *map(str, args)])
        __main__.main()
        return capsys.readouterr().out

    return run


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def write_images(folder, *names):
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / name), draw(i))


def write_video(path, num_frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 12.5, SIZE[::-1])
    for i in range(num_frames):
        writer.write(draw(i))
    writer.release()


@pytest.mark.parametrize('model', ['image.onnx', 'grid.onnx'])
def test_folders_and_videos(run, tmp_path, model):
    write_images(tmp_path / 'a', '1.png', '2.png')
    write_images(tmp_path / 'b', '1.png')
    write_video(tmp_path / 'video.avi', 3)
    out = run(model, 'a', 'b', 'video.avi', '--out', 'results/new')
    assert '4 of 4 written to results/new, with 18 instances' in out
    results = tmp_path / 'results' / 'new'
    assert written(results) == ['a/1.png', 'a/2.png', 'b/1.png', 'images.json', 'results.json', 'video.avi.mp4']
    picture = cv2.imread(str(results / 'a' / '1.png'))
    assert picture.shape == (*SIZE, 3) and (picture != draw()).any()

    coco = COCO(str(results / 'images.json'))
    found = coco.loadRes(str(results / 'results.json'))
    assert [category['name'] for category in coco.loadCats([1, 2])] == list(CLASSES)
    images = list(coco.imgs.values())
    assert [image['file_name'] for image in images] == ['a/1.png', 'a/2.png', 'b/1.png', *['video.avi'] * 3]
    assert [image.get('frame_id') for image in images] == [None] * 3 + [0, 1, 2]
    annotations = found.imgToAnns[images[0]['id']]
    assert [annotation['score'] for annotation in annotations] == pytest.approx([0.9, 0.7, 0.4])
    np.testing.assert_array_equal([found.annToMask(each) for each in annotations], finish()[:3])


def test_score_threshold(run, tmp_path):
    write_images(tmp_path / 'a', '1.png')
    assert 'with 1 instances' in run('grid.onnx', 'a', '--out', 'one', '--score-thr', '0.8')
    assert 'with 4 instances' in run('grid.onnx', 'a', '--out', 'all', '--score-thr', '0')


def test_broken_files_are_skipped(run, tmp_path, capsys):
    write_images(tmp_path / 'a', '1.png', '3.png')
    content = (tmp_path / 'a' / '1.png').read_bytes()
    (tmp_path / 'a' / '2.png').write_bytes(content[: len(content) // 2])
    (tmp_path / 'a' / 'text.mp4').write_text('no video')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SystemExit) as end:
        run('grid.onnx', 'a', 'missing.jpg', 'empty', '--out', 'out')
    captured = capsys.readouterr()
    assert end.value.code.startswith('4 skipped: ')
    for name in ('a/2.png', 'a/text.mp4', 'missing.jpg', 'empty'):
        assert f'skipped {name}: ' in captured.err
    assert '2 of 5 written to out, with 6 instances' in captured.out
    assert written(tmp_path / 'out') == ['1.png', '3.png', 'images.json', 'results.json']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['a', '--out', 'a'], 'a/1.png would be overwritten by its picture'),
        (['a', '--out', 'old'], 'old/results.json exists already. Choose another --out'),
        (['a', '--out', 'file'], 'the folder file cannot be made: File exists'),
        (['empty', '--out', 'out'], 'there are no images and no videos'),
    ],
    ids=str,
)
def test_wrong_arguments_are_explained(run, tmp_path, arguments, message):
    write_images(tmp_path / 'a', '1.png')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old' / 'results.json').write_text('mine')
    (tmp_path / 'file').touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    with pytest.raises(SystemExit) as end:
        run('grid.onnx', *arguments)
    assert message in end.value.code and '\n' not in end.value.code
    assert before == {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}


def test_wrong_model_ends_the_command(run, tmp_path):
    write_images(tmp_path / 'a', '1.png')
    with pytest.raises(SystemExit) as end:
        run('cut.onnx', 'a', '--out', 'out')
    assert 'cut.onnx cannot be loaded' in end.value.code
    assert not (tmp_path / 'out').exists()


def test_picture_shows_masks_and_leaves_the_rest(files):
    image = np.full((*SIZE, 3), 128, np.uint8)
    detections = Segmenter(files / 'grid.onnx')(image)[:1]
    picture = draw_detections(image, detections)
    assert (image == 128).all()
    inside = cv2.erode(finish()[0].astype(np.uint8), np.ones((3, 3))).astype(bool)
    inside[:12] = False  # the name
    assert inside.any() and (picture[inside] != 128).any(axis=1).all()
    assert (picture[30:, 40:] == 128).all()


# Without PyTorch and MMDetection


def test_nothing_else_is_needed(files, tmp_path):
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    cv2.imwrite(str(tmp_path / 'image.png'), draw())
    code = """
import sys
import numpy, onnxruntime, cv2
for name in ('torch', 'mmcv', 'mmdet', 'mmengine', 'onnx', 'pycocotools', 'PIL', 'scipy', 'matplotlib'):
    sys.modules[name] = None
from embedmask_mmdet.runtime import Segmenter
detections = Segmenter('grid.onnx')('image.png')
print(detections.masks.sum(), len(detections.rles[0]['counts']))
import runpy
sys.argv = ['runtime', 'grid.onnx', 'image.png', '--out', 'out']
runpy.run_module('embedmask_mmdet.runtime', run_name='__main__')
"""
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert str(finish().sum()) in ran.stdout and '1 of 1 written' in ran.stdout
