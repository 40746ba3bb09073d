"""The mask stages that are compared. Each method takes no arguments and returns bitmaps or COCO run lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures.mask import encode_mask_results
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet import ops
from embedmask_mmdet.analysis.configs import load_installed_config
from embedmask_mmdet.analysis.mask_stage.cases import CHANNELS, STRIDE
from embedmask_mmdet.ops import plain
from embedmask_mmdet.ops.mask_stage import MaskStage

Method = Callable[[], object]
OURS = ('kernels', 'plain', 'at once')  # how the names of our own methods begin


def compute_masks_at_once(arguments: dict) -> Tensor:
    """Compute masks in the most direct way: all instances, pixels and channels in one tensor.

    Args:
        arguments: Arguments of ``ops.instance_masks``.

    Returns:
        Bool ``(N, H, W)``.
    """
    stage = MaskStage(**arguments)
    resized = F.interpolate(stage.pixel_embed[None], stage.cell_shape, mode='bilinear')[0]
    log_prob = plain.embedding_log_prob(resized, stage.proposal_embed, stage.proposal_margin)
    log_prob.masked_fill_(~ops.inside_boxes(stage.bboxes, stage.cell_shape, stage.cell), stage.outside_value)
    ori_h, ori_w = stage.ori_shape
    log_prob = F.interpolate(log_prob[None], stage.resized_shape, mode='bilinear')[0, :, :ori_h, :ori_w]
    return log_prob > stage.log_thr


def encode_masks(masks: Tensor) -> list[dict]:
    """Encode masks as MMDetection's metrics do."""
    return encode_mask_results(masks.cpu().numpy())


def make_img_meta(arguments: dict) -> dict:
    """Return the meta information of the image that MMDetection's heads need."""
    (h, w), (ori_h, ori_w) = arguments['img_shape'], arguments['ori_shape']
    return dict(img_shape=(h, w), ori_shape=(ori_h, ori_w), scale_factor=(w / ori_w, h / ori_h))


def make_mask_rcnn(arguments: dict) -> Method:
    """Make Mask R-CNN's mask stage, which starts at the feature pyramid: RoIAlign, mask head, pasting, encoding."""
    cfg = load_installed_config('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    head = MODELS.build(dict(**cfg.roi_head, train_cfg=None, test_cfg=cfg.test_cfg.rcnn)).eval()
    device, (h, w) = arguments['bboxes'].device, (size * STRIDE for size in arguments['pixel_embed'].shape[1:])
    head, features = head.to(device), [torch.randn(1, 256, h // s, w // s, device=device) for s in (4, 8, 16, 32)]
    labels = torch.zeros(len(arguments['bboxes']), dtype=torch.long, device=device)

    def run() -> list[dict]:
        results = InstanceData(bboxes=arguments['bboxes'].clone(), labels=labels)
        results = head.predict_mask(features, [make_img_meta(arguments)], [results], rescale=True)
        return encode_masks(results[0].masks)

    return run


def make_condinst(arguments: dict) -> Method:
    """Make CondInst's mask stage, which starts at mask features and parameters: dynamic convolutions, encoding."""
    cfg = load_installed_config('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py').model
    head = MODELS.build(dict(**cfg.mask_head, train_cfg=None, test_cfg=cfg.test_cfg)).eval()
    bboxes, (h, w) = arguments['bboxes'], arguments['pixel_embed'].shape[1:]
    head = head.to(bboxes.device)
    features = torch.randn(8, h, w, device=bboxes.device)
    positives = InstanceData(
        param_preds=0.1 * torch.randn(len(bboxes), 169, device=bboxes.device),
        points=(bboxes[:, :2] + bboxes[:, 2:]) / 2,
        strides=torch.full((len(bboxes),), 8, device=bboxes.device),
    )

    def run() -> list[dict]:
        mask_preds = head.forward_single(features, positives)
        results = [InstanceData(bboxes=bboxes.clone())]
        return encode_masks(head.predict_by_feat(mask_preds, results, [make_img_meta(arguments)])[0].masks)

    return run


def make_solov2(arguments: dict) -> Method:
    """Make SOLOv2's mask stage, which starts at mask features and kernels: convolution, matrix NMS, encoding."""
    cfg = load_installed_config('solov2/solov2_r50_fpn_1x_coco.py').model
    instances, device = len(arguments['bboxes']), arguments['bboxes'].device
    test_cfg = dict(**cfg.test_cfg)
    test_cfg.update(nms_pre=instances, max_per_img=instances, filter_thr=0)
    head = MODELS.build(dict(**cfg.mask_head, train_cfg=None, test_cfg=Config(test_cfg))).eval().to(device)
    h, w = (2 * size for size in arguments['pixel_embed'].shape[1:])
    features = torch.randn(1, 256, h, w, device=device)
    kernels = torch.randn(3872, head.kernel_out_channels, device=device)
    scores = torch.zeros(3872, 80, device=device)
    scores[:instances, 0] = 0.9

    def run() -> list[dict]:
        result = head._predict_by_feat_single(kernels, scores, features, make_img_meta(arguments))
        assert len(result) == instances
        return encode_masks(result.masks)

    return run


def estimate_bytes(name: str, arguments: dict) -> int:
    """Estimate the memory that a method needs, so that those that need too much can be left out.

    Args:
        name: Key of :func:`make_methods`.
        arguments: Arguments of ``ops.instance_masks``.
    """
    (h, w), original = arguments['img_shape'], math.prod(arguments['ori_shape'])
    cells = h * w // 16
    bytes_per_instance = {
        'kernels, RLE': 0,
        'kernels, bitmaps': original,
        'plain, RLE': original,
        'plain, bitmaps': original,
        'at once, RLE': 8 * cells * CHANNELS + 6 * original,
        'at once, bitmaps': 8 * cells * CHANNELS + 6 * original,
        'Mask R-CNN, RLE': original + 20 * 256 * 14 * 14,
        'CondInst, RLE': 12 * h * w + 6 * original,
        'SOLOv2, RLE': 12 * h * w + 6 * original,
    }
    return len(arguments['bboxes']) * bytes_per_instance[name]


def make_methods(arguments: dict, memory_limit: float) -> dict[str, Method]:
    """Make the methods by their names in the table.

    Args:
        arguments: Arguments of ``ops.instance_masks``.
        memory_limit: Bytes above which a method is left out.
    """
    makers = {
        'kernels, RLE': lambda: partial(ops.instance_rles, **arguments),
        'kernels, bitmaps': lambda: partial(ops.instance_masks, **arguments),
        'plain, RLE': lambda: partial(plain.instance_rles, MaskStage(**arguments)),
        'plain, bitmaps': lambda: partial(plain.instance_masks, MaskStage(**arguments)),
        'at once, RLE': lambda: lambda: encode_masks(compute_masks_at_once(arguments)),
        'at once, bitmaps': lambda: partial(compute_masks_at_once, arguments),
        'Mask R-CNN, RLE': partial(make_mask_rcnn, arguments),
        'CondInst, RLE': partial(make_condinst, arguments),
        'SOLOv2, RLE': partial(make_solov2, arguments),
    }
    return {name: make() for name, make in makers.items() if estimate_bytes(name, arguments) <= memory_limit}
