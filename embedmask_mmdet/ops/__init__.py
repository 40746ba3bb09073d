"""The op of EmbedMask: from embeddings to log-probabilities, masks and run lengths.

N: instances, D: embedding channels, (h, w): the pixel embedding's grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType

from torch import Tensor

from . import plain
from .checks import check_embeddings, check_points
from .mask_stage import DEFAULT_MASK_THR, MaskStage, inside_boxes

try:
    from . import kernels

    _NO_KERNELS = ''
except ImportError as error:
    kernels, _NO_KERNELS = None, f' ({error})'

__all__ = [
    'DEFAULT_MASK_THR',
    'embedding_log_prob',
    'inside_boxes',
    'instance_log_probs',
    'instance_masks',
    'instance_rles',
    'point_log_prob',
]


@cache
def _warn_of_plain(device: str) -> None:
    build = 'FORCE_CUDA=1 pip install' if device == 'cuda' else 'pip install'
    warnings.warn(
        f"embedmask_mmdet was built without its kernels for '{device}'{_NO_KERNELS} and uses plain PyTorch, "
        f'which is slower. Build them in its repository: {build} -e .',
        stacklevel=4,  # the line that called the op
    )


def _choose_implementation(pixel_embed: Tensor) -> ModuleType:
    device = pixel_embed.device.type
    if kernels is not None and device in kernels.DEVICES:
        return kernels
    _warn_of_plain(device)
    return plain


def embedding_log_prob(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Compute the log of the probability that a pixel belongs to an instance (EmbedMask, section 3.2).

    It is ``-sum_c margin_c * (pixel_c - proposal_c) ** 2`` and differentiable in all three arguments. Distances are
    computed in float32 under autocast too.

    Args:
        pixel_embed: ``(D, h, w)``, floating point.
        proposal_embed: ``(N, D)``.
        proposal_margin: ``(N, D)``, at least 0.

    Returns:
        ``(N, h, w)``, float64 if an argument is float64, otherwise float32.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes or devices do not match.
    """
    check_embeddings(pixel_embed, proposal_embed, proposal_margin)
    return _choose_implementation(pixel_embed).embedding_log_prob(pixel_embed, proposal_embed, proposal_margin)


def point_log_prob(points_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Compute :func:`embedding_log_prob` where each instance has its own points, in plain PyTorch.

    Args:
        points_embed: ``(N, D, h, w)`` pixel embeddings sampled on a grid of points for each instance.
        proposal_embed: ``(N, D)``.
        proposal_margin: ``(N, D)``, at least 0.

    Returns:
        ``(N, h, w)``, float64 if an argument is float64, otherwise float32.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the shapes do not match.
    """
    check_points(points_embed, proposal_embed, proposal_margin)
    return plain.point_log_prob(points_embed, proposal_embed, proposal_margin)


def instance_masks(
    pixel_embed: Tensor,
    proposal_embed: Tensor,
    proposal_margin: Tensor,
    bboxes: Tensor,
    *,
    stride: int,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    mask_thr: float = DEFAULT_MASK_THR,
    upscale: int = 2,
    resize_prob: bool = False,
) -> Tensor:
    """Compute the masks of one image's detections in original pixels: the mask stage of inference.

    The pixel embedding is resized by ``upscale``. The log-probabilities are cropped to each box grown by two cells,
    resized once to the original image and compared with ``log(mask_thr)``. Not differentiable.

    Args:
        pixel_embed: ``(D, h, w)``, before its resize.
        proposal_embed: ``(N, D)``.
        proposal_margin: ``(N, D)``, at least 0.
        bboxes: ``(N, 4)`` boxes ``x1, y1, x2, y2`` in input pixels. A box that holds a NaN has an empty mask.
        stride: Input pixels per cell of ``pixel_embed``, 8 on P3.
        img_shape: ``(h, w)`` of the network's input before its padding.
        ori_shape: ``(h, w)`` of the original image.
        mask_thr: Probability above which a pixel is on.
        upscale: Factor by which the pixel embedding is resized.
        resize_prob: Resize probabilities, with 0 outside the box, instead of log-probabilities. Halfway between two
            cells the probability is then their mean. The log-probability there is far lower, which makes small masks
            smaller.

    Returns:
        bool ``(N, *ori_shape)``. A pixel is off if a NaN or infinite embedding has a part in it.

    Raises:
        TypeError: If a tensor is not floating point, or a shape is not a pair.
        ValueError: If shapes or devices do not match, or ``mask_thr`` lies outside (0, 1).
    """
    tensors = (pixel_embed, proposal_embed, proposal_margin, bboxes)
    stage = MaskStage(*tensors, stride, img_shape, ori_shape, mask_thr, upscale, resize_prob)
    return _choose_implementation(pixel_embed).instance_masks(stage)


def instance_rles(
    pixel_embed: Tensor,
    proposal_embed: Tensor,
    proposal_margin: Tensor,
    bboxes: Tensor,
    *,
    stride: int,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    mask_thr: float = DEFAULT_MASK_THR,
    upscale: int = 2,
    resize_prob: bool = False,
) -> list[dict]:
    """Compute :func:`instance_masks` as COCO run lengths.

    Returns:
        N dicts ``size`` (``[h, w]`` of the original image) and ``counts`` (bytes), equal to
        ``pycocotools.mask.encode`` of the masks.
    """
    tensors = (pixel_embed, proposal_embed, proposal_margin, bboxes)
    stage = MaskStage(*tensors, stride, img_shape, ori_shape, mask_thr, upscale, resize_prob)
    return _choose_implementation(pixel_embed).instance_rles(stage)


def instance_log_probs(
    pixel_embed: Tensor,
    proposal_embed: Tensor,
    proposal_margin: Tensor,
    bboxes: Tensor,
    *,
    stride: int,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    mask_thr: float = DEFAULT_MASK_THR,
    upscale: int = 2,
    resize_prob: bool = False,
) -> Iterator[Tensor]:
    """Compute the log-probabilities that :func:`instance_masks` compares with ``log(mask_thr)``, in plain PyTorch.

    Returns:
        An iterator over the N instances: ``ori_shape``, float64 if an embedding is float64, otherwise float32. It
        computes an instance when it is asked for it, so that one grid of original pixels is in memory at a time.
    """
    tensors = (pixel_embed, proposal_embed, proposal_margin, bboxes)
    return plain.instance_log_probs(MaskStage(*tensors, stride, img_shape, ori_shape, mask_thr, upscale, resize_prob))
