"""A tiny detector that finds large masks in noise without having been trained, and differently in every place."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import COCO_CONFIG, tiny_detector, tiny_model_cfg


def finder_cfg(config: Path = COCO_CONFIG, **test_cfg) -> dict:
    """Config of :func:`finder`; masks are about 30 pixels wide."""
    cfg = tiny_model_cfg(config, **{'score_thr': 0.0, 'max_per_img': 20, **test_cfg})
    cfg.frame.coord_scale = 16
    return cfg


def finder(config: Path = COCO_CONFIG, **test_cfg):
    """Build it with weights for which it matters what group normalization sees, the same at each call."""
    model = tiny_detector(finder_cfg(config, **test_cfg)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Embeddings stay near to each other, so that pixels near to a location belong to it.
            parameter += (0.01 if 'conv_embed' in name else 0.05) * torch.randn_like(parameter)
        model.bbox_head.conv_reg.bias += 2
    return model
