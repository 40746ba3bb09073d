"""Explain an image: detect, keep the embeddings, and draw or save what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.apis import inference_detector
from mmdet.structures import DetDataSample

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.explain.page import make_explanation_page
from embedmask_mmdet.explain.pictures import draw_detection, draw_image
from embedmask_mmdet.explain.values import ImageValues, describe_detections, describe_pixels, trace_outline
from embedmask_mmdet.fileio import write_atomically
from embedmask_mmdet.media import read_image
from embedmask_mmdet.models import EmbedMask

SUFFIXES = ('.png', '.jpg', '.html')
MIN_SCORE = 0.3
NUM_DETECTIONS = 4


class Explanation(ImageValues):
    """What a model computes for an image, which draws and saves itself.

    :class:`~embedmask_mmdet.explain.values.ImageValues` lists its attributes.
    """

    def draw(self) -> np.ndarray:
        """Draw the image and below it the detections: ``(h, w, 3)`` uint8 in RGB."""
        return np.vstack([draw_image(self), *self.draw_detections()])

    def draw_detections(self) -> list[np.ndarray]:
        """Draw each detection as in :meth:`draw`, without the image."""
        return [draw_detection(self, number) for number in range(1, len(self.detections) + 1)]

    def save(self, path: str | Path, title: str = 'What EmbedMask computes') -> None:
        """Write a picture, or an HTML page that needs no other file. A file that is there is replaced.

        Args:
            path: File to write; its name ends in ``.png``, ``.jpg`` or ``.html``.
            title: Title of the page.

        Raises:
            InputError: If the name ends otherwise.
            OSError: If the file cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise InputError(f'{path} cannot be written. Choose a name that ends in {", ".join(SUFFIXES)}.')
        if suffix == '.html':
            page = make_explanation_page(self, title, draw_image(self), self.draw_detections())
            write_atomically(path, page.encode('utf-8', 'replace'))
        else:
            write_atomically(path, cv2.imencode(suffix, self.draw()[..., ::-1])[1].tobytes())


@contextmanager
def keep_embeddings(model: EmbedMask) -> Iterator[None]:
    """Let results of a model keep their embeddings, as ``test_cfg.keep_embed`` does, for a while."""
    before = model.mask_head.keep_embed
    model.mask_head.keep_embed = True
    try:
        yield
    finally:
        model.mask_head.keep_embed = before


def explain_image(
    model: EmbedMask,
    image: str | Path | np.ndarray,
    detections: Sequence[int] | None = None,
    *,
    score_thr: float = MIN_SCORE,
    max_detections: int = NUM_DETECTIONS,
) -> Explanation:
    """Detect in an image and explain detections.

    Args:
        model: From MMDetection's ``init_detector``, or ``EmbedMaskInferencer(...).model``.
        image: A file, or an image ``(h, w, 3)`` uint8 in BGR.
        detections: Indices of the detections to explain, 0 for the best one. None: the best ones.
        score_thr: Lowest score of a detection that is shown.
        max_detections: Number of detections to explain at most if `detections` is None.

    Returns:
        The explanation.

    Raises:
        OSError: If the file is missing, unreadable or truncated.
        InputError: If the file is not an image, the model is not EmbedMask, or a detection does not exist.
    """
    if not isinstance(model, EmbedMask):
        raise InputError(f'a model of type {type(model).__name__} has no embeddings. Use a config of EmbedMask.')
    image = image if isinstance(image, np.ndarray) else read_image(Path(image))
    with keep_embeddings(model):
        sample = inference_detector(model, image)
    classes = model.dataset_meta['classes']
    return explain_sample(model, image, sample, classes, detections, score_thr, max_detections)


@torch.no_grad()
def explain_sample(
    model: EmbedMask,
    image: np.ndarray,
    sample: DetDataSample,
    classes: Sequence[str],
    detections: Sequence[int] | None = None,
    score_thr: float = MIN_SCORE,
    max_detections: int = NUM_DETECTIONS,
) -> Explanation:
    """Explain detections that a model made within :func:`keep_embeddings`.

    Args:
        model: That made them.
        image: The image as pictures show it, ``(h, w, 3)`` uint8 in BGR, of any size.
        sample: Its result.
        classes: Names of the classes.
        detections: As in :func:`explain_image`.
        score_thr: Likewise.
        max_detections: Likewise.

    Returns:
        The explanation.

    Raises:
        InputError: If a detection does not exist.
    """
    results = sample.pred_instances
    shown = (results.scores >= score_thr).nonzero()[:, 0].tolist()
    chosen = shown[:max_detections] if detections is None else list(detections)
    missing = [index for index in chosen if not 0 <= index < len(results)]
    if missing:
        raise InputError(
            f'detection {missing[0]} does not exist: the image has {len(results)}, counted from 0. Choose another.'
        )
    scale_factor = sample.metainfo.get('scale_factor', (1.0, 1.0))
    masks = results.masks[shown].cpu().numpy() if shown else ()
    return Explanation(
        image=image,
        img_shape=tuple(sample.img_shape[:2]),
        mask_thr=model.mask_head.mask_thr,
        num_detections=len(shown),
        pixels=describe_pixels(model, sample),
        outlines=[outline for mask in masks for outline in trace_outline(mask, scale_factor)],
        detections=describe_detections(model, sample, chosen, classes),
    )
