"""Check image files: that they exist, and, from their headers, that they are as large as the annotations say."""

from __future__ import annotations

import os
import random
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from embedmask_mmdet.engine.data_checks.findings import Finding, error
from embedmask_mmdet.errors import name_some

NUM_THREADS = 16
NUM_DEEP = 8  # images with 16 bits whose pixels are looked at
MIN_DEEP = 8192  # the largest value below which 8 bits have fewer than 32 gray values left
ORIENTATION = 0x0112  # key in EXIF
DEEP_PNG_BIT = 24  # position of the bit depth in a PNG file
CHECK_ALL = '`python tools/misc/check_data.py CONFIG --all-images` looks at all.'


class ImageEntry(NamedTuple):
    """An image of a dataset.

    Attributes:
        path: Where it is.
        size: Width and height in the annotations, in pixels; None if they do not say.
    """

    path: str
    size: tuple[int, int] | None


class Header(NamedTuple):
    """What an image file says about itself.

    Attributes:
        size: Width and height in pixels, as stored.
        turned: Whether EXIF says that it must be turned by 90 degrees.
        deep: Whether a channel has more than 8 bits.
    """

    size: tuple[int, int]
    turned: bool
    deep: bool


class Loading(NamedTuple):
    """How a pipeline loads images.

    Attributes:
        turns: Whether as EXIF says.
        eight_bits: Whether only the upper 8 bits of deeper images are kept.
    """

    turns: bool = True
    eight_bits: bool = True


def read_header(path: str) -> Header | None:
    """Read the header of an image file; None if it is not one."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter('ignore')
            # Pillow would decode other formats to find EXIF.
            turned = image.format in ('JPEG', 'MPO') and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            deep = image.mode.startswith('I')
            if image.format == 'PNG':
                with open(path, 'rb') as file:
                    deep = file.read(DEEP_PNG_BIT + 1)[-1] > 8
            return Header(image.size, turned, deep)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return decode_header(path)


def read_pixels(path: str) -> np.ndarray | None:
    """Decode an image with OpenCV as it is; None if that is not possible."""
    try:
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, OSError):
        return None


def decode_header(path: str) -> Header | None:
    """Get from the pixels what :func:`read_header` cannot get from the header."""
    pixels = read_pixels(path)
    if pixels is None:
        return None
    return Header((pixels.shape[1], pixels.shape[0]), False, pixels.dtype.itemsize > 1)


def find_missing_images(images: Sequence[ImageEntry], dataset: str, ann_file: str) -> Iterator[Finding]:
    """Find folders and images that do not exist on a local disk.

    Args:
        images: Images of a dataset.
        dataset: Name of the dataset, for messages.
        ann_file: Its annotation file.
    """
    names_by_folder: dict[str, set[str]] = defaultdict(set)
    for image in images:
        folder, name = os.path.split(image.path)
        if name and '://' not in folder:
            names_by_folder[folder or os.curdir].add(name)
    for folder, names in names_by_folder.items():
        if not os.path.isdir(folder):
            yield error(
                f'The image folder {folder} of {dataset} does not exist (working folder: {os.getcwd()}). Check '
                'data_root and data_prefix.',
                ann_file=ann_file,
            )
            continue
        missing = sorted(names - set(os.listdir(folder)))
        if missing and any('\\' in name for name in missing):
            missing = [name for name in missing if '\\' in name]
            yield error(
                f'Images of {dataset} are not in {folder}, as "file_name" is a path of Windows: {name_some(missing)}. '
                'Replace each \\ by / in the annotation file, relative to the image folder.',
                missing,
                ann_file=ann_file,
            )
        elif missing:
            yield error(
                f'Images of {dataset} are not in {folder}: {name_some(missing)}. Add them, or remove them from the '
                'annotation file.',
                missing,
                ann_file=ann_file,
            )


class Looked(NamedTuple):
    """An image with its header; None if it is not an image file."""

    image: ImageEntry
    header: Header | None

    @property
    def name(self) -> str:
        """The file name."""
        return os.path.basename(self.image.path)


def look_at(images: Sequence[ImageEntry], num_images: int | None) -> list[Looked]:
    """Read the headers of some images in parallel.

    Args:
        images: Images on a local disk that exist.
        num_images: How many to look at, the same ones at each call; None for all.
    """
    if num_images is not None and num_images < len(images):
        images = random.Random(0).sample(images, num_images)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(map(Looked, images, pool.map(read_header, [image.path for image in images])))


def find_unreadable(looked: Sequence[Looked]) -> tuple[str, list[Looked]]:
    """Find files that are empty or no images."""
    wrong = [look for look in looked if look.header is None]
    empty = [look for look in wrong if os.path.getsize(look.image.path) == 0]
    if empty:
        return 'image files are empty: {names}. Copy them again, or remove them from the annotation file.', empty
    return 'files are not readable images: {names}. Copy them again, or remove them from the annotation file.', wrong


def find_other_sizes(looked: Sequence[Looked], turns: bool) -> Iterator[tuple[str, list[Looked]]]:
    """Find images whose size is not that of their annotations.

    Args:
        looked: Images with headers.
        turns: Whether images are loaded as EXIF says.
    """
    wrong = [
        (look, loaded_size(look.header, turns))
        for look in looked
        if look.header and look.image.size and loaded_size(look.header, turns) != look.image.size
    ]
    turned = [look for look, size in wrong if look.header.turned and look.image.size == look.header.size and turns]
    if turned:
        yield (
            'images are turned when they are loaded, because of their EXIF orientation, but their annotations are '
            "not: {names}. Load them with dict(type='LoadImageFromFile', color_type='color_ignore_orientation') in "
            'all pipelines, or save them without EXIF.',
            turned,
        )
    wrong = [(look, size) for look, size in wrong if look not in turned]
    if wrong:
        look, size = wrong[0]
        expected = look.image.size
        swapped = ' "height" and "width" are swapped.' if size == expected[::-1] else ''
        advice = 'Correct "height" and "width"' if swapped else 'Use the images that were labelled, or resize masks too'
        yield (
            f'images have another size than the annotation file says, {look.name} is {size[0]} x {size[1]} pixels '
            f'(width x height) instead of {expected[0]} x {expected[1]}: {{names}}.{swapped} {advice}.',
            [look for look, _ in wrong],
        )


def loaded_size(header: Header, turns: bool) -> tuple[int, int]:
    """Return width and height of an image after loading."""
    return header.size[::-1] if header.turned and turns else header.size


def find_dark(looked: Sequence[Looked]) -> tuple[str, list[Looked]]:
    """Find images with 16 bits of which MMDetection, which keeps the upper 8, would see almost nothing."""
    deep = [look for look in looked if look.header and look.header.deep][:NUM_DEEP]
    largest = {look: int(pixels.max()) for look in deep if (pixels := read_pixels(look.image.path)) is not None}
    dark = [look for look, value in largest.items() if value < MIN_DEEP]
    highest = max((largest[look] for look in dark), default=0)
    message = (
        f'images have 16 bits but values up to {highest}, of which loading keeps only 0 to {highest // 256}: '
        f'{{names}}. Convert them to 8 bits: cv2.imwrite(out, (cv2.imread(path, -1) * (255 / {max(highest, 1)}))'
        '.astype("uint8")).'
    )
    return message, dark


def find_wrong_images(
    images: Sequence[ImageEntry], dataset: str, ann_file: str, loading: Loading, num_images: int | None
) -> Iterator[Finding]:
    """Find images that are broken, of another size than their annotations say, or too dark in 8 bits.

    Args:
        images: Images on a local disk that exist.
        dataset: Name of the dataset, for messages.
        ann_file: Its annotation file.
        loading: How the pipeline loads images.
        num_images: How many to look at; None for all.
    """
    looked = look_at(images, num_images)
    found = [find_unreadable(looked), *find_other_sizes(looked, loading.turns)]
    if loading.eight_bits:
        found.append(find_dark(looked))
    total = f'{len(looked)} of {len(images)} images' if len(looked) < len(images) else f'{len(images)} images'
    for message, wrong in found:
        if wrong:
            names = [look.name for look in wrong]
            rest = '' if len(looked) == len(images) else f' {CHECK_ALL}'
            text = message.replace('{names}', name_some(names))
            yield error(f'{dataset}: {len(names)} of {total} looked at: {text}{rest}', names, ann_file=ann_file)


def describe_loading(transforms: Sequence[Callable]) -> Loading | None:
    """Say how the first transforms of a pipeline load images; None if they do it in a way that is not known."""
    if not transforms:
        return Loading()
    load = transforms[0]
    if type(load).__name__ != 'LoadImageFromFile':
        return None
    color_type = getattr(load, 'color_type', 'color')
    keeps_all = color_type in ('unchanged', 'anydepth') or load.imdecode_backend not in ('cv2', None)
    turns = 'ignore_orientation' not in color_type and color_type != 'unchanged'
    return Loading(turns and load.imdecode_backend in ('cv2', 'pillow', None), not keeps_all)


def explain_broken_image(problem: Exception) -> str | None:
    """Say which image file a data loader could not read.

    Args:
        problem: An error of training or testing.

    Returns:
        A message; None if the error has another reason.
    """
    # Data loaders prepend lines of their own.
    found = re.search(r'failed to load image: (.*)', str(problem))
    if isinstance(problem, AssertionError) and found:
        return f'{found[1]} is not a readable image. Copy it again, or remove it from the annotation file.'
    if isinstance(problem, cv2.error) and 'imdecode' in str(problem):
        return f'an image file is empty or broken. {CHECK_ALL}'
    return None
