"""The op of EmbedMask: from embeddings to log-probabilities, masks and run lengths.

N: instances, D: embedding channels, (h, w): the pixel embedding's grid.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType

from torch import Tensor

from . import plain
from .checks import check_embeddings, check_mask_stage

try:
    from . import kernels

    _NO_KERNELS = ''
except ImportError as error:
    kernels, _NO_KERNELS = None, f' ({error})'

__all__ = ['embedding_log_prob', 'instance_masks', 'instance_rles']


@cache
def _warn_of_plain(device: str) -> None:
    build = 'FORCE_CUDA=1 pip install' if device == 'cuda' else 'pip install'
    warnings.warn(
        f"embedmask_mmdet was built without its kernels for '{device}'{_NO_KERNELS} and computes in plain PyTorch, "
        f'which is slower. Build them in its repository: {build} --no-build-isolation -e .',
        stacklevel=4,
    )


def _implementation(pixel_embed: Tensor) -> ModuleType:
    device = pixel_embed.device.type
    if kernels is not None and device in kernels.DEVICES:
        return kernels
    _warn_of_plain(device)
    return plain


def embedding_log_prob(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Log of the probability that a pixel belongs to an instance, ``-sum_c margin_c * (pixel_c - proposal_c) ** 2``.

    Differentiable in all three (EmbedMask, section 3.2). Distances are in float32 whatever autocast says.

    Args:
        pixel_embed: ``(D, h, w)``, floating point.
        proposal_embed: ``(N, D)``.
        proposal_margin: ``(N, D)``, at least 0.

    Returns:
        ``(N, h, w)``, float64 where an argument is, else float32.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If the shapes do not go together or the devices differ.
    """
    check_embeddings(pixel_embed, proposal_embed, proposal_margin)
    return _implementation(pixel_embed).embedding_log_prob(pixel_embed, proposal_embed, proposal_margin)


def instance_masks(
    pixel_embed: Tensor,
    proposal_embed: Tensor,
    proposal_margin: Tensor,
    bboxes: Tensor,
    *,
    stride: int,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    mask_thr: float = 0.53,
    upscale: int = 2,
    resize_prob: bool = False,
) -> Tensor:
    """The mask stage of inference for one image, from embeddings to masks in original pixels.

    The pixel embedding is resized by ``upscale``, the log-probabilities are cropped to each box grown by two cells,
    resized once to the original image and compared with ``log(mask_thr)``. Not differentiable.

    Args:
        pixel_embed: ``(D, h, w)``, before its resize.
        proposal_embed: ``(N, D)``.
        proposal_margin: ``(N, D)``, at least 0.
        bboxes: ``(N, 4)`` boxes ``x1, y1, x2, y2`` in input pixels. One that holds a NaN has an empty mask.
        stride: Input pixels a cell of ``pixel_embed``, 8 on P3.
        img_shape: ``(h, w)`` of the network's input before its padding.
        ori_shape: ``(h, w)`` of the original image.
        mask_thr: Probability above which a pixel is on.
        upscale: Factor of the embedding's resize.
        resize_prob: Whether probabilities are resized and compared with ``mask_thr``, and 0 is outside. Halfway between
            two cells they are the mean. Log-probabilities are far below it, which makes small masks smaller.

    Returns:
        bool ``(N, *ori_shape)``. A pixel that an embedding which is not finite reaches is off.

    Raises:
        TypeError: If a tensor is not of floating point, or a shape no pair.
        ValueError: If shapes or devices do not go together, or ``mask_thr`` lies outside (0, 1).
    """
    kwargs = dict(stride=stride, img_shape=img_shape, ori_shape=ori_shape, mask_thr=mask_thr, upscale=upscale)
    check_mask_stage(pixel_embed, proposal_embed, proposal_margin, bboxes, **kwargs)
    kwargs['resize_prob'] = resize_prob
    return _implementation(pixel_embed).instance_masks(pixel_embed, proposal_embed, proposal_margin, bboxes, **kwargs)


def instance_rles(
    pixel_embed: Tensor,
    proposal_embed: Tensor,
    proposal_margin: Tensor,
    bboxes: Tensor,
    *,
    stride: int,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    mask_thr: float = 0.53,
    upscale: int = 2,
    resize_prob: bool = False,
) -> list[dict]:
    """:func:`instance_masks` as COCO run lengths.

    Returns:
        N dicts ``size`` (``[h, w]`` of the original image) and ``counts`` (bytes): what
        ``pycocotools.mask.encode`` makes of the masks.
    """
    kwargs = dict(stride=stride, img_shape=img_shape, ori_shape=ori_shape, mask_thr=mask_thr, upscale=upscale)
    check_mask_stage(pixel_embed, proposal_embed, proposal_margin, bboxes, **kwargs)
    kwargs['resize_prob'] = resize_prob
    return _implementation(pixel_embed).instance_rles(pixel_embed, proposal_embed, proposal_margin, bboxes, **kwargs)
