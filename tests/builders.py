"""Build small detectors, configs, batches and datasets that take seconds: discs and rectangles on noise."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.datasets.coco import encode_instance
from embedmask_mmdet.models import EmbedMask

ROOT = Path(__file__).parents[1]
COCO_CONFIG = ROOT / 'configs' / 'embedmask_r50_1x_coco.py'
PLUS_CONFIG = ROOT / 'configs' / 'embedmask-plus_r50_1x_coco.py'
CLASSES = ('disc', 'rectangle')


def tiny_model_cfg(config: Path = COCO_CONFIG, **test_cfg) -> dict:
    """Shrink a COCO config's model to ResNet-18 with 32 channels, without downloads."""
    cfg = Config.fromfile(config)
    group_norm = dict(type='GN', num_groups=8)
    cfg.merge_from_dict(
        {
            'model.backbone.depth': 18,
            'model.backbone.init_cfg': None,
            'model.backbone.style': 'pytorch',
            'model.neck.in_channels': [64, 128, 256, 512],
            'model.neck.out_channels': 32,
            'model.bbox_head.num_classes': len(CLASSES),
            'model.bbox_head.in_channels': 32,
            'model.bbox_head.feat_channels': 32,
            'model.bbox_head.stacked_convs': 1,
            'model.bbox_head.norm_cfg': group_norm,
            'model.mask_head.in_channels': 32,
            'model.mask_head.feat_channels': 32,
            'model.mask_head.stacked_convs': 1,
            'model.mask_head.norm_cfg': group_norm,
        }
    )
    if 'pixel_branch' in cfg.model:
        cfg.model.pixel_branch.update(in_channels=64, level_channels=32, channels=32, norm_cfg=group_norm)
    cfg.model.test_cfg.update(test_cfg)
    return cfg.model


def plus_model_cfg(**test_cfg) -> dict:
    """Shrink EmbedMask plus; no detection is lost to its soft-NMS, however low its score becomes."""
    cfg = tiny_model_cfg(PLUS_CONFIG, **test_cfg)
    cfg.test_cfg.refine[-1].nms.min_score = 0.0
    return cfg


def tiny_detector(model_cfg: dict | None = None):
    """Build the tiny detector with its initial weights, the same at each call."""
    torch.manual_seed(0)
    model = MODELS.build(model_cfg or tiny_model_cfg())
    model.init_weights()
    return model


def draw_shapes(rng: np.random.Generator, size: tuple[int, int], num_instances: int) -> tuple[np.ndarray, list, list]:
    """Draw an image with shapes; return it with their masks and labels."""
    height, width = size
    image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    masks, labels = [], []
    for _ in range(num_instances):
        label = int(rng.integers(len(CLASSES)))
        mask = np.zeros(size, np.uint8)
        center = (int(rng.integers(width)), int(rng.integers(height)))
        extent = int(rng.integers(6, 24))
        if label == 0:
            cv2.circle(mask, center, extent, 1, -1)
        else:
            cv2.rectangle(mask, center, (center[0] + extent, center[1] + extent), 1, -1)
        image[mask > 0] = rng.integers(100, 255, 3)
        masks.append(mask)
        labels.append(label)
    return image, masks, labels


def write_tiny_coco(root: Path, num_images: int = 4, num_instances: int = 3, size: tuple[int, int] = (96, 128)) -> Path:
    """Write images and ``annotations.json`` and return the folder."""
    rng = np.random.default_rng(0)
    (root / 'images').mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        image, masks, labels = draw_shapes(rng, size, num_instances)
        name = f'{image_id}.png'
        cv2.imwrite(str(root / 'images' / name), image)
        images.append(dict(id=image_id, file_name=name, height=size[0], width=size[1]))
        for mask, label in zip(masks, labels):
            annotations.append(encode_instance(mask, len(annotations) + 1, image_id, label + 1))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'annotations.json').write_text(json.dumps(content))
    return root


def tiny_cfg(data_root: Path, work_dir: Path, epochs: int = 1) -> Config:
    """Make the COCO config train the tiny model on :func:`write_tiny_coco`'s data, in this process."""
    cfg = Config.fromfile(COCO_CONFIG)
    cfg.model = tiny_model_cfg()
    cfg.work_dir = str(work_dir)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=str(data_root),
            ann_file='annotations.json',
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=CLASSES),
        )
        loader.dataset.pipeline = [step for step in loader.dataset.pipeline if step.type != 'Resize']
    cfg.train_dataloader.update(batch_size=2, batch_sampler=None)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(data_root / 'annotations.json')
    cfg.train_cfg.max_epochs = epochs
    cfg.default_hooks.logger.interval = 1
    return cfg


def batch(sizes: list[tuple[int, int]], num_instances: list[int]) -> dict:
    """Make a batch as a dataloader gives it: images, and samples with instances."""
    rng = np.random.default_rng(0)
    inputs, data_samples = [], []
    for size, count in zip(sizes, num_instances):
        image, masks, labels = draw_shapes(rng, size, count)
        inputs.append(torch.from_numpy(image).permute(2, 0, 1))
        masks = np.stack(masks) if masks else np.zeros((0, *size), np.uint8)
        bitmaps = BitmapMasks(masks, *size)
        instances = InstanceData(
            bboxes=bitmaps.get_bboxes(HorizontalBoxes).tensor if count else torch.zeros(0, 4),
            labels=torch.tensor(labels, dtype=torch.long),
            masks=bitmaps,
        )
        metainfo = dict(img_id=len(inputs), img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        data_samples.append(DetDataSample(gt_instances=instances, metainfo=metainfo))
    return dict(inputs=inputs, data_samples=data_samples)


def compute_losses(model: EmbedMask, data: dict) -> dict[str, Tensor]:
    """Compute the losses of a batch from :func:`batch`, which stays as it is."""
    data = model.data_preprocessor(copy.deepcopy(data), training=True)
    return model.train().loss(data['inputs'], data['data_samples'])


def predict(model: EmbedMask, data: dict) -> list[DetDataSample]:
    """Detect in a batch from :func:`batch`, which stays as it is."""
    with torch.no_grad():
        return model.eval().test_step(copy.deepcopy(data))


def responsive_model_cfg(config: Path = COCO_CONFIG, **test_cfg) -> dict:
    """Make the config of :func:`build_responsive_detector`; masks are about 30 pixels wide."""
    cfg = tiny_model_cfg(config, **{'score_thr': 0.0, 'max_per_img': 20, **test_cfg})
    cfg.frame.coord_scale = 16
    return cfg


def build_responsive_detector(config: Path = COCO_CONFIG, **test_cfg):
    """Build a detector that finds large masks in noise without training, other ones in every place.

    The weights are the same at each call, and for them it matters what group normalization sees.
    """
    model = tiny_detector(responsive_model_cfg(config, **test_cfg)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Embeddings stay near to each other, so that pixels near to a location belong to it.
            parameter += (0.01 if 'conv_embed' in name else 0.05) * torch.randn_like(parameter)
        model.bbox_head.conv_reg.bias += 2
    return model
