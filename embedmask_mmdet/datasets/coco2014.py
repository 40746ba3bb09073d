"""COCO 2014's minival and valminusminival, the lists that many publications train and test on.

Their original download no longer exists, but they can be restored: minival is the images of val2014 that became
val2017, and valminusminival is the other images of val2014. The ID of an image is the same in all years; its file name
is not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.fileio import write_atomically

VAL2014, VAL2017 = 'instances_val2014.json', 'instances_val2017.json'
MINIVAL, VALMINUSMINIVAL = 'instances_minival2014.json', 'instances_valminusminival2014.json'
NUM_VAL2014, NUM_MINIVAL = 40504, 5000
FILE_NAMES = {VAL2014: re.compile(r'COCO_val2014_\d{12}\.jpg'), VAL2017: re.compile(r'\d{12}\.jpg')}


def read_annotations(folder: Path, name: str) -> dict:
    """Read an annotation file of COCO.

    Args:
        folder: Folder of the annotation files.
        name: ``VAL2014`` or ``VAL2017``.

    Returns:
        The content of the file.

    Raises:
        InputError: The file is missing or damaged, or has images of another year or split.
    """
    path = folder / name
    try:
        content = json.loads(path.read_bytes())
        file_names = [image['file_name'] for image in content['images']]
        content['annotations'], content['categories']
    except FileNotFoundError as error:
        raise InputError(
            f'{path} does not exist. It is part of annotations_trainval{name[-9:-5]}.zip on cocodataset.org.'
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} is damaged or not an annotation file of COCO ({error!r}). Copy it again.') from error
    foreign = [file_name for file_name in file_names if not FILE_NAMES[name].fullmatch(file_name)]
    if foreign or not file_names:
        problem = f'has an image {foreign[0]}' if foreign else 'has no images'
        raise InputError(f'{path} is not what its name says: it {problem}. Is it the file of another year or split?')
    return content


def split_val2014(val2014: dict, val2017: dict) -> tuple[dict, dict]:
    """Split val2014 into the images that are in val2017 and the others.

    Args:
        val2014: Content of the annotation file.
        val2017: The same for val2017; only the IDs of its images are used.

    Returns:
        minival and valminusminival, with all other fields of val2014.

    Raises:
        InputError: val2017 has images that val2014 does not have, or is incomplete.
    """
    minival_ids = {image['id'] for image in val2017['images']}
    unknown = minival_ids - {image['id'] for image in val2014['images']}
    if unknown:
        raise InputError(
            f'{len(unknown)} of {len(minival_ids)} images of {VAL2017} are not in {VAL2014}, such as ID '
            f'{min(unknown)}. One of the files is incomplete, or is not what its name says.'
        )
    if len(val2014['images']) == NUM_VAL2014 and len(minival_ids) != NUM_MINIVAL:
        raise InputError(
            f'{VAL2017} has {len(minival_ids)} images instead of {NUM_MINIVAL}. Copy the complete file: the missing '
            'images would be in valminusminival, so that models would be trained on test images.'
        )
    return tuple(
        {
            **val2014,
            'images': [image for image in val2014['images'] if (image['id'] in minival_ids) == is_minival],
            'annotations': [
                annotation
                for annotation in val2014['annotations']
                if (annotation['image_id'] in minival_ids) == is_minival
            ],
        }
        for is_minival in (True, False)
    )


def write_lists(folder: Path, out: Path) -> None:
    """Write minival and valminusminival, unless both exist already.

    Args:
        folder: Folder with the annotation files of val2014 and val2017.
        out: Folder to write to.

    Raises:
        InputError: An annotation file cannot be used.
        OSError: A file cannot be read or written.
    """
    if all((out / name).exists() for name in (MINIVAL, VALMINUSMINIVAL)):
        print(f'{out / MINIVAL} and {VALMINUSMINIVAL} exist already; remove one to write both again')
        return
    parts = split_val2014(read_annotations(folder, VAL2014), read_annotations(folder, VAL2017))
    out.mkdir(parents=True, exist_ok=True)
    for name, part in zip((MINIVAL, VALMINUSMINIVAL), parts):
        write_atomically(out / name, json.dumps(part))
        print(f'{out / name}: {len(part["images"])} images, {len(part["annotations"])} instances')
    num_images = sum(len(part['images']) for part in parts)
    if num_images != NUM_VAL2014:
        print(f'note: {VAL2014} has {num_images} images, but the complete file has {NUM_VAL2014}')
