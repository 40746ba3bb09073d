"""The images that decide about the scales of int8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from embedmask_mmdet.deployment.inputs import ImageInput
from embedmask_mmdet.deployment.kinds import Kind
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.media import SkippedFiles, is_video, list_files, read_image
from embedmask_mmdet.models import EmbedMask


def find_images(folder: str | Path) -> list[Path]:
    """List the images of a folder.

    Raises:
        InputError: If it has none.
    """
    files = [file for file in list_files([folder], SkippedFiles()) if file.is_file() and not is_video(file)]
    if not files:
        raise InputError(f'{folder} has no images to calibrate with. Name a folder with images as in training.')
    return files


def read_images(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """Read images one after another; those that cannot be read are reported and left out.

    Yields:
        uint8 ``(H, W, 3)``, BGR.

    Raises:
        InputError: If none can be read.
    """
    skipped = SkippedFiles()
    for file in files:
        with skipped.skip_on_error(file):
            yield read_image(file)
    if len(skipped) == len(files):
        raise InputError('no image to calibrate with can be read. Name another folder.')


def make_inputs(
    kind: Kind, model: EmbedMask, pipeline: Sequence[dict], images: Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
    """Turn images into what a kind of file takes.

    Raises:
        InputError: If a step of the pipeline cannot be exported, or the kind takes one size only.
    """
    if kind.make_input is ImageInput:
        return images
    if not isinstance(kind.make_input, type):
        raise InputError('calibration needs images of any size, but the shape is fixed. Leave out --shape or --int8.')
    preparation = ImageInput(model, pipeline)
    return (preparation(torch.from_numpy(image))[0].numpy() for image in images)
