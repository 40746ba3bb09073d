"""The metrics of an ONNX file are those of its detections, and files that cannot be tested are explained."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from embedmask_mmdet.deployment import evaluation
from embedmask_mmdet.deployment.evaluation import evaluate
from embedmask_mmdet.errors import InputError
from tests.builders import CLASSES, ROOT, tiny_cfg
from tests.scripts import run_script

TOOL = ROOT / 'tools' / 'deployment' / 'test_onnx.py'


class PerfectSegmenter:
    """Gives what is in the annotation file, if it sees an image as OpenCV reads it."""

    class_names = CLASSES

    def __init__(self, data_root):
        coco = COCO(data_root / 'annotations.json')
        self.annotations = {}
        for image_id, image in coco.imgs.items():
            pixels = cv2.imread(str(data_root / 'images' / image['file_name']))
            self.annotations[pixels.tobytes()] = [
                (annotation['bbox'], annotation['category_id'] - 1, coco.annToMask(annotation))
                for annotation in coco.imgToAnns[image_id]
            ]

    def __call__(self, image):
        bboxes, labels, masks = zip(*self.annotations[image.tobytes()])
        bboxes = np.array(bboxes)
        bboxes[:, 2:] += bboxes[:, :2]
        return SimpleNamespace(
            bboxes=bboxes,
            scores=np.linspace(0.9, 0.5, len(bboxes)),
            labels=np.array(labels),
            masks=np.stack(masks) > 0,
        )


@pytest.fixture
def cfg(data_root, tmp_path):
    cfg = tiny_cfg(data_root, tmp_path)
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=(200, 100), keep_ratio=True))
    return cfg


def test_perfect_detections_have_perfect_metrics(cfg, data_root, monkeypatch):
    monkeypatch.setattr(evaluation, 'Segmenter', lambda path: PerfectSegmenter(data_root))
    metrics = evaluate(cfg, 'model.onnx')
    assert metrics['coco/segm_mAP'] == metrics['coco/bbox_mAP'] == 1.0
    assert len(cfg.test_dataloader.dataset.pipeline) == 4  # the config is as it was


def test_other_classes_are_named(cfg, data_root, monkeypatch):
    segmenter = PerfectSegmenter(data_root)
    segmenter.class_names = ('cat', 'dog')
    monkeypatch.setattr(evaluation, 'Segmenter', lambda path: segmenter)
    with pytest.raises(InputError, match='model.onnx has the classes cat, dog, but the test set has disc, rectangle'):
        evaluate(cfg, 'model.onnx')


@pytest.fixture
def identity():
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ('input', 'output')]
    node = onnx.helper.make_node('Identity', ['input'], ['output'])
    graph = onnx.helper.make_graph([node], 'test', values[:1], values[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8)


def test_tool_explains_a_file_of_another_kind(identity, cfg, tmp_path):
    (tmp_path / 'other.onnx').write_bytes(identity.SerializeToString())
    cfg.dump(tmp_path / 'config.py')
    ran = run_script(TOOL, ['config.py', 'other.onnx'], tmp_path)
    assert ran.code == 1 and 'Traceback' not in ran.stderr
    assert 'it takes input and gives output. Write it with' in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize('content', ['truncated', 'empty', 'text'])
def test_tool_explains_a_broken_file(identity, content, cfg, tmp_path):
    whole = identity.SerializeToString()
    contents = dict(truncated=whole[: len(whole) // 2], empty=b'', text=b'this is no ONNX file')
    (tmp_path / 'broken.onnx').write_bytes(contents[content])
    cfg.dump(tmp_path / 'config.py')
    ran = run_script(TOOL, ['config.py', 'broken.onnx'], tmp_path)
    assert ran.code == 1 and 'Traceback' not in ran.stderr
    assert 'broken.onnx cannot be loaded: it is incomplete or not an ONNX file' in ran.stderr.splitlines()[-1]
    assert 'Copy it again, or write it with tools/deployment/export_onnx.py' in ran.stderr.splitlines()[-1]


def test_tool_names_a_missing_file(cfg, tmp_path):
    cfg.dump(tmp_path / 'config.py')
    ran = run_script(TOOL, ['config.py', 'none.onnx'], tmp_path)
    assert ran.code == 1 and 'the model none.onnx does not exist. Write it with' in ran.stderr


def test_tool_names_missing_data(cfg, data_root, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, 'Segmenter', lambda path: PerfectSegmenter(data_root))
    cfg.test_dataloader.dataset.ann_file = 'gone.json'
    cfg.dump(tmp_path / 'config.py')
    ran = run_script(TOOL, ['config.py', 'model.onnx'], tmp_path)
    assert ran.code == 1 and 'Traceback' not in ran.stderr
    assert 'gone.json does not exist' in ran.stderr.splitlines()[-1]


def test_tool_prints_metrics(cfg, data_root, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, 'Segmenter', lambda path: PerfectSegmenter(data_root))
    cfg.dump(tmp_path / 'config.py')
    (tmp_path / 'model.onnx').touch()
    ran = run_script(TOOL, ['config.py', 'model.onnx'], tmp_path)
    assert ran.code == 0, ran.stderr[-2000:]
    assert 'coco/segm_mAP: 1.0' in ran.stdout
