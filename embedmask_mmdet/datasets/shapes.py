"""A dataset of textured shapes that hide one another, to compare models where nothing can be downloaded.

There are six classes; four are concave or have a hole. Each has its own outline and hue, so that a small network learns
to tell them apart in some hundred iterations. Textures, shades and rotations are random. Sizes range from 8 pixels to
15/16 of the image, and most are near the geometric mean of both. Masks contain what is visible.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from embedmask_mmdet.datasets.coco import CocoWriter
from embedmask_mmdet.fileio import write_folder_atomically

MIN_SIZE = 8  # pixels; the longer side of a shape's box
NUM_SHAPES = (6, 18)  # range of the number of shapes in an image, before hidden ones are dropped
MIN_VISIBLE = 0.4  # part of a shape's area
MIN_AREA = 16  # pixels
HUE_SPREAD = 0.03  # of a turn; the hues of the classes are 1/6 apart
SUPERSAMPLING = 4  # outlines are filled on a grid this many times finer
Rng = np.random.Generator


def arc(start: float, end: float, radius: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Return points ``(64, 2)`` on a circle, between two angles in radians."""
    angles = np.linspace(start, end, 64)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radius + center


def ellipse(rng: Rng) -> list[np.ndarray]:
    """Draw an ellipse's outline."""
    return [arc(0, 2 * np.pi) * (1, rng.uniform(0.45, 1))]


def rectangle(rng: Rng) -> list[np.ndarray]:
    """Draw a rectangle's outline."""
    return [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (1, rng.uniform(0.35, 1))]


def star(rng: Rng) -> list[np.ndarray]:
    """Draw the outline of a star with five to seven points."""
    points = 2 * int(rng.integers(5, 8))
    angles = np.arange(points) * (2 * np.pi / points)
    radii = np.where(np.arange(points) % 2, rng.uniform(0.4, 0.55), 1)
    return [np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]]


def crescent(rng: Rng) -> list[np.ndarray]:
    """Draw the outline of a disc without the part that another disc covers."""
    tip, center = rng.uniform(0.4, 0.9), rng.uniform(0.2, 0.6)
    x, y = np.cos(tip) - center, np.sin(tip)
    inner = np.arctan2(y, x)
    bite = arc(2 * np.pi - inner, inner, np.hypot(x, y), (center, 0))
    return [np.concatenate([arc(tip, 2 * np.pi - tip), bite])]


def ring(rng: Rng) -> list[np.ndarray]:
    """Draw the outlines of a ring, which may be oval."""
    circle = arc(0, 2 * np.pi) * (1, rng.uniform(0.7, 1))
    return [circle, circle * rng.uniform(0.45, 0.65)]


def horseshoe(rng: Rng) -> list[np.ndarray]:
    """Draw the outline of a ring with a gap."""
    gap, inner = rng.uniform(0.5, 1.0), rng.uniform(0.45, 0.65)
    return [np.concatenate([arc(gap, 2 * np.pi - gap), arc(2 * np.pi - gap, gap, inner)])]


SHAPES: dict[str, Callable[[Rng], list[np.ndarray]]] = {
    function.__name__: function for function in (ellipse, rectangle, star, crescent, ring, horseshoe)
}


def fill_contours(rng: Rng, contours: list[np.ndarray], size: float) -> np.ndarray:
    """Rotate a shape randomly, and fill it.

    Args:
        rng: Generator of random numbers.
        contours: ``(n, 2)`` points, in any unit; a second contour is a hole.
        size: Longer side of the shape's box in pixels.

    Returns:
        ``(size, size)`` uint8, 1 inside the shape; `size` is rounded up.
    """
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    contours = [contour @ rotation for contour in contours]
    points = np.concatenate(contours)
    low, extent = points.min(0), np.ptp(points, 0)
    side = int(np.ceil(size))
    canvas = np.zeros((side * SUPERSAMPLING, side * SUPERSAMPLING), np.uint8)
    scale = size * SUPERSAMPLING / extent.max()
    filled = [np.round((contour - low) * scale).astype(np.int32) for contour in contours]
    cv2.fillPoly(canvas, filled, 255)
    return (cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)


def place_shape(rng: Rng, shape: np.ndarray, size: int) -> np.ndarray:
    """Put a shape into an empty image ``(size, size)``, with its center anywhere in it, and crop it at the border."""
    side = len(shape)
    image = np.zeros((size + 2 * side, size + 2 * side), np.uint8)
    x, y = rng.integers(side - side // 2, side - side // 2 + size, 2)
    image[y : y + side, x : x + side] = shape
    return image[side : side + size, side : side + size]


def draw_pattern(rng: Rng, size: int) -> np.ndarray:
    """Draw clouds, waves or a checkerboard, ``(size, size)`` from 0 to 1."""
    x, y = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    kind, period = rng.integers(3), 2 ** rng.uniform(2, 5)
    cells = int(np.ceil(size / period)) + 2
    clouds = cv2.resize(rng.random((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    u, v = (x * np.cos(t) + y * np.sin(t) for t in rng.uniform(0, np.pi) + np.array([0, np.pi / 2]))
    waves = [np.sin(2 * np.pi * t / period + 3 * clouds) for t in (u, v)]
    return (clouds, waves[0] / 2 + 0.5, (waves[0] * waves[1] > 0).astype(np.float32))[kind]


def draw_texture(rng: Rng, size: int, hue: float, saturation: float, shade: float) -> np.ndarray:
    """Draw a pattern in shades of a color.

    Args:
        rng: Generator of random numbers.
        size: Side of the image in pixels.
        hue: Hue of the color, from 0 to 1.
        saturation: Saturation of the color, from 0 to 1.
        shade: Mean brightness, from 0 to 255.

    Returns:
        ``(size, size, 3)`` float32 from 0 to 255.
    """
    shades = shade + rng.uniform(20, 80) * np.array([-0.5, 0.5])
    color = 1 - saturation * (0.5 + 0.5 * np.cos(2 * np.pi * (hue + np.arange(3) / 3)))
    value = shades[0] + draw_pattern(rng, size) * (shades[1] - shades[0])
    return (value[..., None] * color).astype(np.float32)


def draw_instances(rng: Rng, size: int) -> tuple[list[np.ndarray], list[int]]:
    """Draw shapes that hide one another.

    Returns:
        The visible masks ``(size, size)`` uint8, from front to back, and their classes.
    """
    num_shapes = int(rng.integers(NUM_SHAPES[0], NUM_SHAPES[1] + 1))
    sizes = MIN_SIZE * (size * 15 / 16 / MIN_SIZE) ** rng.beta(2, 2, num_shapes)
    # Small shapes are mostly in front of large ones, otherwise few of them would be visible.
    sizes = sizes[np.argsort(np.log2(sizes) + rng.normal(0, 1, num_shapes))]
    hidden = np.zeros((size, size), np.uint8)
    masks, labels = [], []
    for side in sizes:
        label = int(rng.integers(len(SHAPES)))
        shape = fill_contours(rng, list(SHAPES.values())[label](rng), side)
        mask = place_shape(rng, shape, size) & ~hidden
        if mask.sum() >= max(MIN_AREA, MIN_VISIBLE * shape.sum()):
            hidden |= mask
            masks.append(mask)
            labels.append(label)
    return masks, labels


def draw_image(rng: Rng, size: int) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Draw an image.

    Returns:
        The image ``(size, size, 3)`` uint8 in BGR, the visible masks ``(size, size)`` uint8, and their classes.
    """
    masks, labels = draw_instances(rng, size)
    image = draw_texture(rng, size, rng.random(), rng.uniform(0, 0.2), rng.uniform(40, 160))
    for mask, label in zip(masks, labels):
        hue = label / len(SHAPES) + rng.normal(0, HUE_SPREAD)
        image[mask > 0] = draw_texture(rng, size, hue, rng.uniform(0.7, 1), rng.uniform(120, 230))[mask > 0]
    light = cv2.resize(rng.uniform(0.7, 1.1, (2, 2)).astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    image = cv2.GaussianBlur(image * light[..., None], (0, 0), 0.7) + rng.normal(0, 6, image.shape)
    return np.clip(image.round(), 0, 255).astype(np.uint8), masks, labels


def write_split(folder: Path, split: str, num_images: int, size: int, seed: int) -> int:
    """Write images and their annotation file below `folder`; return the number of instances."""
    writer = CocoWriter(folder, split, list(SHAPES))
    for index in range(num_images):
        rng = np.random.default_rng([seed, int(split == 'test'), index])
        image, masks, labels = draw_image(rng, size)
        image_id = writer.add_image(f'{split}_{index:04d}.png', image)
        for mask, label in zip(masks, labels):
            writer.add_instance(image_id, mask, category_id=label + 1)
    writer.save()
    return len(writer.annotations)


def write_dataset(out: Path, num_train: int, num_test: int, size: int, seed: int) -> None:
    """Write the dataset.

    The same arguments give the same files, with the same versions of NumPy and OpenCV. An image does not depend on the
    number of images.

    Args:
        out: Folder to write. If it exists, it is not changed.
        num_train: Number of training images.
        num_test: Number of test images.
        size: Side of the images in pixels.
        seed: Seed of the random numbers.
    """
    if out.exists():
        print(f'{out} exists already; remove it to write it again')
        return
    with write_folder_atomically(out) as folder:
        train = write_split(folder, 'train', num_train, size, seed)
        test = write_split(folder, 'test', num_test, size, seed)
    print(f'{out}: {train} instances in {num_train} training images, {test} in {num_test} test images')
