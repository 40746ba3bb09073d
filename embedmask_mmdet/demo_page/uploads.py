"""Read images that somebody uploads: only common formats, and nothing that is too large to be decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.media import IMAGE_EXTENSIONS, read_image

FORMATS = ('BMP', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
MEGABYTE, MEGAPIXEL = 2**20, 10**6


@dataclass(frozen=True)
class UploadLimits:
    """What may be uploaded.

    Attributes:
        megabytes: Largest size of a file.
        megapixels: Largest number of pixels of an image, in millions.
    """

    megabytes: float = 20
    megapixels: float = 25

    def read(self, file: Path) -> np.ndarray:
        """Read an image file within the limits.

        Returns:
            ``(h, w, 3)`` uint8 in BGR, upright.

        Raises:
            InputError: If the file is too large, not an image or broken. The message does not name the file.
        """
        size = file.stat().st_size
        if size > self.megabytes * MEGABYTE:
            raise InputError(
                f'The file has {size / MEGABYTE:.1f} MB, the limit is {self.megabytes:g} MB. Choose a smaller one.'
            )
        width, height = read_size(file)
        if width * height > self.megapixels * MEGAPIXEL:
            raise InputError(
                f'The image has {width}x{height} pixels, the limit is {self.megapixels:g} million. Make it smaller.'
            )
        try:
            return read_image(file)
        except (OSError, ValueError, SyntaxError) as error:  # PIL raises all of these for broken files
            raise InputError('The image is incomplete or broken. Save or copy it again.') from error


def read_size(file: Path) -> tuple[int, int]:
    """Read the width and height of an image from its header, without decoding it.

    Raises:
        InputError: If the file is not an image of a format in ``FORMATS``.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise InputError('The image has far too many pixels. Make it smaller.') from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f'This is not an image, or it is broken. Choose a file in {", ".join(FORMATS)}.') from error


def list_examples(folder: Path) -> list[Path]:
    """List the images in a folder.

    Raises:
        InputError: If the folder does not exist or has none.
    """
    if not folder.is_dir():
        raise InputError(f'the folder of examples {folder} does not exist. Name a folder with images.')
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_EXTENSIONS)
    if not files:
        raise InputError(f'the folder of examples {folder} has no images. Name a folder with images.')
    return files
