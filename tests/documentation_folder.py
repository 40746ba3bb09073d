"""A folder in which everything that the documentation names is there, and small."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.registry import init_default_scope

from embedmask_mmdet.datasets.coco import encode_instance
from embedmask_mmdet.deployment.export import make_graph
from tests.builders import COCO_CONFIG, PLUS_CONFIG, ROOT, draw_shapes, tiny_model_cfg

COCO_CLASSES = CocoDataset.METAINFO['classes']
SHRUNK_BY = 8
NUCLEI_CHECKPOINT = 'work_dirs/embedmask-plus_r18_nuclei/iter_450.pth'
SIZES = [(60, 80), (80, 60)]


def divide(scale: int | list | tuple) -> int | list | tuple:
    """Divide a size in pixels, or many, by ``SHRUNK_BY``."""
    return scale // SHRUNK_BY if isinstance(scale, int) else type(scale)(map(divide, scale))


def shrink_scales(value: object) -> None:
    """Divide the sizes that images are resized to, wherever they stand in a config."""
    if isinstance(value, dict):
        for name in ('scale', 'scales'):
            if 'Resize' in str(value.get('type')) and name in value:
                value[name] = divide(value[name])
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        shrink_scales(each)


def shrink(cfg: Config) -> Config:
    """Keep a config's data, classes and settings, but with the tiny model, and one epoch or two iterations."""
    num_classes, test_cfg = cfg.model.bbox_head.num_classes, cfg.model.test_cfg
    cfg.model = tiny_model_cfg(COCO_CONFIG if cfg.model.frame.type == 'EmbedMaskLocationFrame' else PLUS_CONFIG)
    cfg.model.bbox_head.num_classes = num_classes
    cfg.model.test_cfg = test_cfg
    for name in list(cfg):
        shrink_scales(cfg[name])
        if name.endswith('_dataloader'):
            cfg[name].update(num_workers=0, persistent_workers=False)
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.max_epochs = 1
    return cfg


def write_config(path: Path, cfg: Config) -> None:
    """Write a config, without the formatting that takes MMEngine long."""
    path.write_text(''.join(f'{name} = {value!r}\n' for name, value in cfg.to_dict().items()))


def write_images(folder: Path, prefix: str, ids: list[int], seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Write images; return COCO's entries of them and of what is in them, of the first two categories."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in ids:
        size = SIZES[image_id % len(SIZES)]
        image, masks, labels = draw_shapes(np.random.default_rng(image_id + seed), size, 3)
        name = f'{prefix}{image_id:012}.jpg'
        cv2.imwrite(str(folder / name), image)
        images.append(dict(id=image_id, file_name=name, height=size[0], width=size[1]))
        for i, (mask, label) in enumerate(zip(masks, labels)):
            annotations.append(encode_instance(mask, 10 * image_id + i, image_id, label + 1))
    return images, annotations


def write_lists(path: Path, classes: tuple[str, ...], images: list[dict], annotations: list[dict] | None) -> None:
    """Write an annotation file, or one of images alone."""
    content = dict(info={}, licenses=[], images=images)
    content['categories'] = [dict(id=i, name=name) for i, name in enumerate(classes, start=1)]
    if annotations is not None:
        content['annotations'] = annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root: Path) -> None:
    """Write COCO of 2014 and 2017, with 80 classes, but few images."""
    lists = {
        'instances_train2014': ('train2014', 'COCO_train2014_', [1, 2]),
        'instances_val2014': ('val2014', 'COCO_val2014_', [3, 4, 5, 6]),
        'instances_minival2014': ('val2014', 'COCO_val2014_', [3, 4]),
        'instances_valminusminival2014': ('val2014', 'COCO_val2014_', [5, 6]),
        'image_info_test2014': ('test2014', 'COCO_test2014_', [7, 8]),
        'instances_train2017': ('train2017', '', [1, 2, 5, 6]),
        'instances_val2017': ('val2017', '', [3, 4]),
        'image_info_test-dev2017': ('test2017', '', [7, 8]),
    }
    for name, (folder, prefix, ids) in lists.items():
        images, annotations = write_images(root / folder, prefix, ids)
        write_lists(
            root / 'annotations' / f'{name}.json', COCO_CLASSES, images, None if 'info' in name else annotations
        )


def write_own_data(root: Path) -> None:
    """Write the datasets of one's own that the README and docs/own-data.md name."""
    for name, ids in dict(train=[1, 2, 3, 4], val=[5, 6]).items():
        write_lists(root / 'pets' / f'{name}.json', ('cat', 'dog'), *write_images(root / 'pets/images', name, ids))
    for name, ids in dict(train=[1], test=[2]).items():
        images, annotations = write_images(root / 'nuclei/images', name, ids)
        annotations = [dict(annotation, category_id=1) for annotation in annotations]
        write_lists(root / 'nuclei/annotations' / f'{name}.json', ('nucleus',), images, annotations)


def write_checkpoint(path: Path, config: Path) -> None:
    """Write weights of a config's model, which find something."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg = Config.fromfile(config)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        model.bbox_head.conv_cls.bias.fill_(-2)
        model.bbox_head.conv_cls.bias[:2] = 2
        model.bbox_head.conv_reg.bias += 2
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = cfg.test_dataloader.dataset.get('metainfo', {}).get('classes', COCO_CLASSES)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), path)


def write_authors_checkpoint(path: Path) -> None:
    """Write the names and shapes of the authors' R50, which take next to no space."""
    shapes = json.loads((ROOT / 'tests/data/upstream_state_dict_r50.json').read_text())
    torch.save(dict(model={f'module.{name}': torch.zeros(1).expand(shape) for name, shape in shapes.items()}), path)


def write_onnx(path: Path, config: Path) -> None:
    """Write the ONNX file of a config's model, if onnx is installed."""
    if importlib.util.find_spec('onnx') is None:
        return
    cfg = Config.fromfile(config)
    classes = dict(classes=json.dumps(cfg.metainfo.classes))
    graph = make_graph(MODELS.build(cfg.model).eval(), get_test_pipeline_cfg(cfg), classes)
    path.write_bytes(graph.SerializeToString())


def make_documentation_folder(folder: Path) -> Path:
    """Write configs, data, images and checkpoints under the names that the documentation has for them."""
    (folder / 'configs').mkdir()
    for path in (ROOT / 'configs').glob('embedmask*.py'):
        write_config(folder / 'configs' / path.name, shrink(Config.fromfile(path)))
    shutil.copy(folder / 'configs/embedmask_own-data.py', folder / 'configs/my_data.py')
    write_coco(folder / 'data/coco')
    write_own_data(folder / 'data')
    for name in ('D', 'images'):
        write_images(folder / name, '', [1, 2])
    cv2.imwrite(str(folder / 'image.jpg'), draw_shapes(np.random.default_rng(0), (60, 80), 3)[0])
    for name in ('epoch_12.pth', 'work_dirs/embedmask_r50_1x_coco/epoch_12.pth', 'models/embedmask_r50.pth'):
        write_checkpoint(folder / name, folder / 'configs/embedmask_r50_1x_coco.py')
    write_checkpoint(folder / NUCLEI_CHECKPOINT, folder / 'configs/embedmask-plus_r18_nuclei.py')
    write_onnx(folder / 'model.onnx', folder / 'configs/embedmask-plus_r18_nuclei.py')
    write_authors_checkpoint(folder / 'models/embed_mask_R50_1x.pth')
    return folder
