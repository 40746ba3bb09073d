"""What a model computes for an image and its detections, as arrays. All positions are in input pixels.

h, w: cells of the pixel embedding; H, W: cells of the mask grid, which is finer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional

from embedmask_mmdet import ops
from embedmask_mmdet.models import EmbedMask, EmbedMaskLocationFrame
from embedmask_mmdet.models.frames.location_frame import NUM_SPATIAL

NUM_COLORS = 3
COLOR_RANGE = (1, 99)  # percentiles that become the darkest and the brightest color


class Ellipse(NamedTuple):
    """An upright ellipse.

    Attributes:
        center: ``(x, y)``.
        radii: Half of its width and of its height. Infinite if the margin is 0.
    """

    center: tuple[float, float]
    radii: tuple[float, float]


@dataclass(frozen=True, eq=False)
class PixelValues:
    """The pixel embedding of an image.

    Attributes:
        colors: float ``(h, w, 3)`` from 0 to 1, RGB: the principal components of the channels that are not spatial.
        offsets: float ``(h, w, 2)``, from the center of each cell to where it points: the place that its
            spatial channels mean.
        stride: Side of a cell.
    """

    colors: np.ndarray
    offsets: np.ndarray
    stride: int

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` that the cells cover."""
        return tuple(self.stride * cells for cells in self.colors.shape[1::-1])


@dataclass(frozen=True, eq=False)
class DetectionValues:
    """A detection, and how its mask comes about.

    Attributes:
        index: Its rank among the detections of the image, 0 for the best one.
        class_name: Name of its class.
        score: Its score.
        point: ``(x, y)`` of the location that predicted it.
        bbox: ``(x1, y1, x2, y2)`` of the result.
        crop_bbox: The box that cuts the mask. Refinements change only the other one.
        proposal_embed: ``(D,)``, placed in the frame.
        proposal_margin: ``(D,)``, likewise.
        ellipse: Pixels that point into it have at least the probability ``mask_thr`` from the spatial channels alone.
        spatial_prob: ``(H, W)``, probability from the spatial channels alone.
        other_prob: ``(H, W)``, probability from the other channels alone.
        prob: ``(H, W)``, probability from all channels: the product of both.
        image_prob: Probability in each pixel of the original image, cut with the box.
        mask: bool, of the same shape.
        grid_size: ``(width, height)`` that the maps ``(H, W)`` cover.
    """

    index: int
    class_name: str
    score: float
    point: np.ndarray
    bbox: np.ndarray
    crop_bbox: np.ndarray
    proposal_embed: np.ndarray
    proposal_margin: np.ndarray
    ellipse: Ellipse
    spatial_prob: np.ndarray
    other_prob: np.ndarray
    prob: np.ndarray
    image_prob: np.ndarray
    mask: np.ndarray
    grid_size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class ImageValues:
    """An image and some of its detections.

    Attributes:
        image: ``(h, w, 3)`` uint8 in BGR, of any size.
        img_shape: ``(height, width)`` of the network's input without padding, which all positions refer to.
        mask_thr: Probability above which a pixel belongs to an instance.
        num_detections: Number of detections with the lowest score that counts.
        pixels: The pixel embedding.
        outlines: Polygons ``(K, 2)`` around the masks of all these detections.
        detections: Those that are explained.
    """

    image: np.ndarray
    img_shape: tuple[int, int]
    mask_thr: float
    num_detections: int
    pixels: PixelValues
    outlines: list[np.ndarray]
    detections: list[DetectionValues]

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` of the network's input."""
        return self.img_shape[1], self.img_shape[0]


def color_embedding(embed: np.ndarray) -> np.ndarray:
    """Show channels as colors: their first three principal components, each stretched to the full range.

    The sign of a component is arbitrary, so the channel with the largest part in it gets a positive one.

    Args:
        embed: ``(C, h, w)``. NaN and infinite values count as 0.

    Returns:
        ``(h, w, 3)`` from 0 to 1; components that do not exist or do not vary are 0.5.
    """
    num_channels, height, width = embed.shape
    channels = np.nan_to_num(embed.reshape(num_channels, height * width).astype(float), posinf=0, neginf=0)
    colors = np.full((NUM_COLORS, height * width), 0.5)
    centered = channels - channels.mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(centered @ centered.T)
    vectors = vectors[:, ::-1][:, :NUM_COLORS]
    for i, vector in enumerate(vectors.T):
        component = vector @ centered * np.sign(vector[np.abs(vector).argmax()])
        low, high = np.percentile(component, COLOR_RANGE)
        if high > low:
            colors[i] = np.clip((component - low) / (high - low), 0, 1)
    return colors.T.reshape(height, width, NUM_COLORS)


def find_offsets(frame: EmbedMaskLocationFrame, pixel_embed: Tensor, stride: int) -> Tensor:
    """Find how far from its own center each cell points.

    Args:
        frame: Frame of the spatial channels.
        pixel_embed: ``(D, h, w)``.
        stride: Input pixels per cell.

    Returns:
        ``(h, w, 2)``, x and y in input pixels.
    """
    own = frame.embed_cells(pixel_embed.shape[-2:], stride)
    return frame.locate_points(pixel_embed[:NUM_SPATIAL] - own).permute(1, 2, 0)


def find_ellipses(
    frame: EmbedMaskLocationFrame, proposal_embed: Tensor, proposal_margin: Tensor, prob: float
) -> list[Ellipse]:
    r"""Find the places that give at least a probability if the other channels agree completely.

    These are the places ``(x, y)`` with
    ``margin_x * (embed(x) - embed_x) ** 2 + margin_y * (embed(y) - embed_y) ** 2 <= -log(prob)``.

    Args:
        frame: Frame of the spatial channels.
        proposal_embed: ``(N, D)``, placed in the frame.
        proposal_margin: ``(N, D)``, likewise.
        prob: The probability on the border.

    Returns:
        N ellipses in input pixels.
    """
    centers = frame.locate_points(proposal_embed[:, :NUM_SPATIAL])
    log_prob = proposal_margin.new_tensor(prob).log()
    radii = frame.locate_points((-log_prob / proposal_margin[:, :NUM_SPATIAL]).sqrt()).abs()
    return [Ellipse(tuple(center), tuple(radius)) for center, radius in zip(centers.tolist(), radii.tolist())]


def compute_probs(mask_embed: Tensor, results: InstanceData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the probability maps of detections.

    Args:
        mask_embed: Pixel embedding on the mask grid, ``(D, H, W)``.
        results: ``proposal_embed`` and ``proposal_margin`` ``(N, D)``.

    Returns:
        ``(N, H, W)`` each: from the spatial channels, from the others, and from all.
    """

    def compute(channels: slice) -> np.ndarray:
        arguments = mask_embed[channels], results.proposal_embed[:, channels], results.proposal_margin[:, channels]
        return ops.embedding_log_prob(*(tensor.contiguous() for tensor in arguments)).exp().cpu().numpy()

    spatial, prob = compute(slice(NUM_SPATIAL)), compute(slice(None))
    other = compute(slice(NUM_SPATIAL, None)) if len(mask_embed) > NUM_SPATIAL else np.ones_like(prob)
    return spatial, other, prob


def describe_pixels(model: EmbedMask, sample: DetDataSample) -> PixelValues:
    """Describe the pixel embedding of a sample that was detected with ``keep_embed``."""
    stride, (height, width) = model.mask_head.stride, sample.img_shape[:2]
    # Without the cells of the padding, whose colors nobody sees.
    embed = sample.pixel_embed[:, : -(-height // stride), : -(-width // stride)]
    offsets = find_offsets(model.frame, embed, stride).cpu().numpy()
    return PixelValues(color_embedding(embed[NUM_SPATIAL:].cpu().numpy()), offsets, stride)


def describe_detections(
    model: EmbedMask, sample: DetDataSample, chosen: Sequence[int], classes: Sequence[str]
) -> list[DetectionValues]:
    """Describe detections of a sample that was detected with ``keep_embed``.

    Args:
        model: That detected.
        sample: With ``pred_instances`` and ``pixel_embed``.
        chosen: Indices of the detections.
        classes: Names of the classes.
    """
    head, results = model.mask_head, sample.pred_instances[torch.tensor(chosen, dtype=torch.long)]
    stage = (sample.pixel_embed, results.proposal_embed, results.proposal_margin, results.crop_bboxes)
    mask_embed = functional.interpolate(sample.pixel_embed[None], scale_factor=head.mask_scale, mode='bilinear')[0]
    log_probs = ops.instance_log_probs(*stage, **head.mask_stage_options(sample.metainfo, rescale=True))
    scale = np.tile(sample.metainfo.get('scale_factor', (1.0, 1.0)), 2)
    grid_size = tuple(head.stride * cells for cells in sample.pixel_embed.shape[:0:-1])
    columns = dict(
        index=chosen,
        class_name=[classes[label] for label in results.labels.tolist()],
        score=results.scores.tolist(),
        point=results.points.cpu().numpy(),
        bbox=results.bboxes.cpu().numpy() * scale,
        crop_bbox=results.crop_bboxes.cpu().numpy(),
        proposal_embed=results.proposal_embed.cpu().numpy(),
        proposal_margin=results.proposal_margin.cpu().numpy(),
        ellipse=find_ellipses(model.frame, results.proposal_embed, results.proposal_margin, head.mask_thr),
        **dict(zip(('spatial_prob', 'other_prob', 'prob'), compute_probs(mask_embed, results))),
        image_prob=[log_prob.exp().cpu().numpy() for log_prob in log_probs],
        mask=results.masks.cpu().numpy(),
        grid_size=[grid_size] * len(results),
    )
    return [DetectionValues(**dict(zip(columns, row))) for row in zip(*columns.values())]


def trace_outline(mask: np.ndarray, scale_factor: tuple[float, float]) -> list[np.ndarray]:
    """Trace the outlines of a mask of the original image: polygons ``(K, 2)`` in input pixels."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [(contour[:, 0] + 0.5) * scale_factor for contour in contours]
