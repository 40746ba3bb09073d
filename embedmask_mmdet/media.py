"""Find images and videos, name their pictures, read images, and skip files that cannot be processed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from embedmask_mmdet.errors import InputError

IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')  # of DetInferencer
VIDEO_EXTENSIONS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
WRITABLE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.mp4')


class SkippedFiles(list[Path]):
    """The files that could not be read, processed or written."""

    @contextlib.contextmanager
    def skip_on_error(self, file: Path) -> Iterator[None]:
        """Report an error with a file on stderr, add the file to this list, and go on."""
        try:
            yield
        except (OSError, ValueError, cv2.error) as error:
            print(f'skipped {file}: {getattr(error, "strerror", None) or error}', file=sys.stderr)
            self.append(file)


def is_video(file: Path) -> bool:
    """Return whether the file name is that of a video."""
    return file.suffix.lower() in VIDEO_EXTENSIONS


def list_files(inputs: Sequence[str | Path], skipped: SkippedFiles) -> list[Path]:
    """List files, and the images and videos in folders, without duplicates.

    Args:
        inputs: Files and folders.
        skipped: Folders that cannot be read or have no images and videos are added to it.
    """
    files = []
    for path in (Path(each).expanduser() for each in inputs):
        if not path.is_dir():
            files.append(path)
            continue
        with skipped.skip_on_error(path):
            known = [file for file in path.iterdir() if is_video(file) or file.suffix.lower() in IMAGE_EXTENSIONS]
            if not known:
                raise InputError('there are no images and no videos in this folder')
            files += sorted(known)
    return list({os.path.abspath(file): file for file in files}.values())


def name_outputs(files: Sequence[Path], out_dir: Path) -> list[Path]:
    """Choose a different output file for each input file.

    Outputs are named like the inputs. If two inputs have the same name, all outputs also get the folders below the
    inputs' common folder. A suffix is added where pictures cannot be written in the input's format.

    Raises:
        InputError: An output would overwrite an input.
    """
    names = [Path(file.name) for file in files]
    if len(set(names)) < len(names):
        absolute = [Path(os.path.abspath(file)) for file in files]
        common = os.path.commonpath([file.parent for file in absolute])
        names = [file.relative_to(common) for file in absolute]
    outputs = [out_dir / f'{name}{choose_suffix(name)}' for name in names]
    overwritten = {file.resolve() for file in files} & {output.resolve() for output in outputs}
    if overwritten:
        raise InputError(f'{overwritten.pop()} would be overwritten by its picture: choose another --out-dir')
    return outputs


def choose_suffix(file: Path) -> str:
    """Return the suffix to add to a file name so that a color picture or video can be written."""
    if file.suffix.lower() in WRITABLE_EXTENSIONS:
        return ''
    return '.mp4' if is_video(file) else '.png'


def read_image(file: Path) -> np.ndarray:
    """Read an image as training does: upright, 16 bits scaled to 8, without alpha.

    Returns:
        ``(h, w, 3)`` uint8 in BGR.

    Raises:
        OSError: The file is missing, unreadable or truncated.
        InputError: The file is not an image.
    """
    check_complete(file)
    content = np.frombuffer(file.read_bytes(), np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise InputError('this is not a complete image in a format that OpenCV reads')
    return image


def check_complete(file: Path) -> None:
    """Read an image with PIL, if it is installed: some versions of OpenCV fill the missing part of a JPEG with gray.

    Raises:
        OSError: The file is missing, unreadable or truncated.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        return
    with contextlib.suppress(UnidentifiedImageError), Image.open(file) as image:
        image.load()
