"""Pictures of ``tools/test.py --show-dir``: one for each image, also for images of the same name."""

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config

from tests.builders import CLASSES, COCO_CONFIG, write_tiny_coco


def write_images(root, names):
    """Write a tiny dataset whose images have these names."""
    write_tiny_coco(root, num_images=len(names))
    content = json.loads((root / 'annotations.json').read_text())
    for image, name in zip(content['images'], names):
        path = root / 'images' / name
        path.parent.mkdir(exist_ok=True)
        shutil.move(root / 'images' / image['file_name'], path)
        image['file_name'] = name
    (root / 'annotations.json').write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (['a/1.png', 'b/1.png', 'b/2.png'], ['a/1.png', 'b/1.png', 'b/2.png']),
        (['a/1.png', 'b/2.png', '3.png'], ['1.png', '2.png', '3.png']),
    ],
    ids=['same names', 'different names'],
)
def test_each_image_gets_its_picture(tmp_path, monkeypatch, names, expected):
    write_images(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    dataset = CocoDataset(
        ann_file='annotations.json',
        data_root=str(tmp_path),
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[],
    )
    DetLocalVisualizer.get_instance('test_drawing_hook').dataset_meta = dict(classes=CLASSES)
    cfg = Config.fromfile(COCO_CONFIG).default_hooks.visualization
    hook = HOOKS.build(dict(cfg, draw=True, test_out_dir='drawn'))
    # A relative folder, as tools/test.py has it.
    runner = SimpleNamespace(work_dir='work', timestamp='now', test_dataloader=SimpleNamespace(dataset=dataset))
    hook.before_test(runner)
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        sample = DetDataSample(metainfo=dict(img_path=info['img_path']))
        hook.after_test_iter(runner, i, {}, [sample])
    drawn = tmp_path / 'work' / 'now' / 'drawn'
    assert sorted(str(path.relative_to(drawn)) for path in drawn.rglob('*.png')) == sorted(expected)
    for name, picture in zip(names, expected):
        image, drawing = cv2.imread(str(tmp_path / 'images' / name)), cv2.imread(str(drawn / picture))
        # Beside it is the ground truth.
        np.testing.assert_array_equal(drawing[:, : image.shape[1]], image)
