"""Make a COCO dataset of textured shapes that hide one another, for comparing models where nothing can be downloaded.

Six classes, of which four are concave or have a hole. Each has an outline and a hue, so that a small net learns to tell
them apart in some hundred iterations; textures, shades and rotations are any. Sizes are from 8 pixels to 15/16 of the
image, most often near the geometric mean of both. Masks are what is visible.

    OUT/images/{train,test}_0000.png ...
    OUT/annotations/{train,test}.json

The same arguments give the same files, with the same versions of NumPy and OpenCV, and an image does not depend on how
many others are made.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

MIN_SIZE = 8  # pixels; the longer side of a shape's box
INSTANCES = (6, 18)  # tried in an image; those that would be nearly hidden are left out
MIN_VISIBLE = 0.4  # of a shape's area
MIN_AREA = 16  # pixels
HUE_SPREAD = 0.03  # turns; the classes' hues are 1/6 apart
SUPERSAMPLING = 4  # finer grid on which outlines are filled
Rng = np.random.Generator


def arc(start: float, end: float, radius: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Return points `(64, 2)` on a circle, between two angles in radians."""
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
    """Draw the outline of a disc that another disc has bitten into."""
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


def fill(rng: Rng, contours: list[np.ndarray], size: float) -> np.ndarray:
    """Fill a shape in a random rotation.

    Args:
        rng: Generator of random numbers.
        contours: Of `(n, 2)`, in any unit; a second one is a hole.
        size: Longer side of the result's box in pixels.

    Returns:
        The shape `(size, size)` uint8, 1 inside, with its side rounded up.
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


def place(rng: Rng, shape: np.ndarray, size: int) -> np.ndarray:
    """Put a shape into an empty image `(size, size)`, its centre anywhere in it, and cut it at the border."""
    side = len(shape)
    image = np.zeros((size + 2 * side, size + 2 * side), np.uint8)
    x, y = rng.integers(side - side // 2, side - side // 2 + size, 2)
    image[y : y + side, x : x + side] = shape
    return image[side : side + size, side : side + size]


def pattern(rng: Rng, size: int) -> np.ndarray:
    """Draw clouds, waves or checks, `(size, size)` from 0 to 1."""
    x, y = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    kind, period = rng.integers(3), 2 ** rng.uniform(2, 5)
    cells = int(np.ceil(size / period)) + 2
    clouds = cv2.resize(rng.random((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    u, v = (x * np.cos(t) + y * np.sin(t) for t in rng.uniform(0, np.pi) + np.array([0, np.pi / 2]))
    waves = [np.sin(2 * np.pi * t / period + 3 * clouds) for t in (u, v)]
    return (clouds, waves[0] / 2 + 0.5, (waves[0] * waves[1] > 0).astype(np.float32))[kind]


def texture(rng: Rng, size: int, hue: float, saturation: float, shade: float) -> np.ndarray:
    """Draw a pattern around a shade of a colour, whose hue is in turns, `(size, size, 3)` float32 from 0 to 255."""
    shades = shade + rng.uniform(20, 80) * np.array([-0.5, 0.5])
    color = 1 - saturation * (0.5 + 0.5 * np.cos(2 * np.pi * (hue + np.arange(3) / 3)))
    value = shades[0] + pattern(rng, size) * (shades[1] - shades[0])
    return (value[..., None] * color).astype(np.float32)


def draw_instances(rng: Rng, size: int) -> tuple[list[np.ndarray], list[int]]:
    """Draw what is visible of shapes, the one in front first; return masks `(size, size)` uint8 and classes."""
    number = int(rng.integers(INSTANCES[0], INSTANCES[1] + 1))
    sizes = MIN_SIZE * (size * 15 / 16 / MIN_SIZE) ** rng.beta(2, 2, number)
    # Mostly the small before the large, else few of the small would be seen.
    sizes = sizes[np.argsort(np.log2(sizes) + rng.normal(0, 1, number))]
    hidden = np.zeros((size, size), np.uint8)
    masks, labels = [], []
    for side in sizes:
        label = int(rng.integers(len(SHAPES)))
        shape = fill(rng, list(SHAPES.values())[label](rng), side)
        mask = place(rng, shape, size) & ~hidden
        if mask.sum() >= max(MIN_AREA, MIN_VISIBLE * shape.sum()):
            hidden |= mask
            masks.append(mask)
            labels.append(label)
    return masks, labels


def draw_image(rng: Rng, size: int) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Draw an image `(size, size, 3)` uint8 with its visible masks `(size, size)` uint8 and their classes."""
    masks, labels = draw_instances(rng, size)
    image = texture(rng, size, rng.random(), rng.uniform(0, 0.2), rng.uniform(40, 160))
    for mask, label in zip(masks, labels):
        hue = label / len(SHAPES) + rng.normal(0, HUE_SPREAD)
        image[mask > 0] = texture(rng, size, hue, rng.uniform(0.7, 1), rng.uniform(120, 230))[mask > 0]
    light = cv2.resize(rng.uniform(0.7, 1.1, (2, 2)).astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    image = cv2.GaussianBlur(image * light[..., None], (0, 0), 0.7) + rng.normal(0, 6, image.shape)
    return np.clip(image.round(), 0, 255).astype(np.uint8), masks, labels


def annotate(mask: np.ndarray, label: int) -> dict:
    """Turn a mask into a COCO annotation with an exact (RLE) mask."""
    rle = mask_utils.encode(np.asfortranarray(mask))
    return dict(
        category_id=label + 1,
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
        bbox=mask_utils.toBbox(rle).tolist(),
        area=int(mask_utils.area(rle)),
        iscrowd=0,
    )


def write_split(out: Path, split: str, number: int, size: int, seed: int) -> int:
    """Write `number` images and their annotation file below `out`; return the number of instances."""
    for folder in ('images', 'annotations'):
        (out / folder).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(number):
        rng = np.random.default_rng([seed, int(split == 'test'), index])
        image, masks, labels = draw_image(rng, size)
        name = f'{split}_{index:04d}.png'
        cv2.imwrite(str(out / 'images' / name), image)
        images.append(dict(id=index + 1, file_name=name, height=size, width=size))
        for mask, label in zip(masks, labels):
            annotations.append(dict(id=len(annotations) + 1, image_id=index + 1, **annotate(mask, label)))
    categories = [dict(id=label + 1, name=name) for label, name in enumerate(SHAPES)]
    coco = dict(images=images, annotations=annotations, categories=categories)
    (out / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
    return len(annotations)


def make(out: Path, images: tuple[int, int], size: int, seed: int) -> None:
    """Write the dataset to `out`; an `out` that exists is left as it is.

    Args:
        out: Folder to write.
        images: How many to train on, and how many to test on.
        size: Side of the images in pixels.
        seed: Of the random numbers.
    """
    if out.exists():
        print(f'{out} is there already; remove it to write it again')
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        # The folder gets its name when it is whole, so that an interrupted run leaves nothing half written.
        dataset = Path(scratch, 'dataset')
        train, test = (write_split(dataset, *split, size, seed) for split in zip(('train', 'test'), images))
        shutil.move(dataset, out)
    print(f'{out}: {train} instances in {images[0]} images to train on, {test} in {images[1]} to test on')


def main() -> None:
    """Write the dataset, or end with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/shapes'), help='folder to write (default: %(default)s)')
    parser.add_argument('--images', type=int, nargs=2, default=(400, 80), metavar=('TRAIN', 'TEST'), help='how many')
    parser.add_argument('--size', type=int, default=256, help='side of the images in pixels (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    args = parser.parse_args()
    if min(args.images) < 1 or args.seed < 0:
        sys.exit('ERROR: --images must be at least 1 each and --seed at least 0')
    if args.size < 4 * MIN_SIZE:
        sys.exit(f'ERROR: --size must be at least {4 * MIN_SIZE}: the smallest shapes are {MIN_SIZE} pixels wide')
    make(args.out, tuple(args.images), args.size, args.seed)


if __name__ == '__main__':
    main()
