"""Write COCO 2014's minival and valminusminival, the lists that much published work trains and tests on.

Their original download is gone, but nothing is lost: minival is the images of val2014 that became val2017, and
valminusminival is the rest, which went to train2017. Images keep their ids from year to year and change their file
names only. Both lists have images and annotations as they stand in instances_val2014.json:

    OUT/instances_minival2014.json            5000 images
    OUT/instances_valminusminival2014.json   35504 images
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

VAL2014, VAL2017 = 'instances_val2014.json', 'instances_val2017.json'
MINIVAL, REST = 'instances_minival2014.json', 'instances_valminusminival2014.json'
NUM_VAL2014, NUM_MINIVAL = 40504, 5000
FILE_NAMES = {VAL2014: re.compile(r'COCO_val2014_\d{12}\.jpg'), VAL2017: re.compile(r'\d{12}\.jpg')}


class AnnotationsError(RuntimeError):
    """An annotation file that is missing or not the one that is wanted; the message says which and what to do."""


def read_annotations(folder: Path, name: str) -> dict:
    """Read one of the two annotation files.

    Args:
        folder: With COCO's annotation files.
        name: ``VAL2014`` or ``VAL2017``.

    Returns:
        The file's content; ``images`` have the file names of that year.

    Raises:
        AnnotationsError: It is missing or damaged, or has other images.
    """
    path = folder / name
    try:
        content = json.loads(path.read_bytes())
        file_names = [image['file_name'] for image in content['images']]
        content['annotations'], content['categories']
    except FileNotFoundError as error:
        raise AnnotationsError(
            f'{path} does not exist. It comes in annotations_trainval{name[-9:-5]}.zip on cocodataset.org'
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise AnnotationsError(f'{path} is damaged or no annotation file of COCO ({error!r}); copy it again') from error
    foreign = [file_name for file_name in file_names if not FILE_NAMES[name].fullmatch(file_name)]
    if foreign or not file_names:
        what = f'has an image {foreign[0]}' if foreign else 'has no images'
        raise AnnotationsError(f'{path} is not what its name says: it {what}. Is it the file of another year or set?')
    return content


def split_val2014(val2014: dict, val2017: dict) -> tuple[dict, dict]:
    """Divide val2014 into what is in val2017 and what is not.

    Args:
        val2014: As :func:`read_annotations` gives it.
        val2017: The same; only ids of images are looked at.

    Returns:
        minival and valminusminival, with all other fields of val2014.

    Raises:
        AnnotationsError: val2017 has images that val2014 has not, or too few.
    """
    chosen = {image['id'] for image in val2017['images']}
    unknown = chosen - {image['id'] for image in val2014['images']}
    if unknown:
        raise AnnotationsError(
            f'{len(unknown)} of {len(chosen)} images of {VAL2017} are not in {VAL2014}, such as id {min(unknown)}: '
            'one of the files has other images than its name says, or not all'
        )
    if len(val2014['images']) == NUM_VAL2014 and len(chosen) != NUM_MINIVAL:
        raise AnnotationsError(
            f'{VAL2017} has {len(chosen)} images instead of {NUM_MINIVAL}: the others would be trained on as part of '
            'valminusminival, although they are tested on'
        )
    return tuple(
        {
            **val2014,
            'images': [image for image in val2014['images'] if (image['id'] in chosen) == is_minival],
            'annotations': [each for each in val2014['annotations'] if (each['image_id'] in chosen) == is_minival],
        }
        for is_minival in (True, False)
    )


def convert(folder: Path, out: Path) -> None:
    """Write both lists to `out`, from the annotation files in `folder`, unless both are there already."""
    if all((out / name).exists() for name in (MINIVAL, REST)):
        print(f'{out / MINIVAL} and {REST} are there already; remove one to write both again')
        return
    parts = split_val2014(read_annotations(folder, VAL2014), read_annotations(folder, VAL2017))
    out.mkdir(parents=True, exist_ok=True)
    # Files get their names when both are whole, so that an interrupted run leaves nothing half written.
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        for name, part in zip((MINIVAL, REST), parts):
            Path(scratch, name).write_text(json.dumps(part))
        for name, part in zip((MINIVAL, REST), parts):
            os.replace(Path(scratch, name), out / name)
            print(f'{out / name}: {len(part["images"])} images, {len(part["annotations"])} instances')
    num_images = sum(len(part['images']) for part in parts)
    if num_images != NUM_VAL2014:
        print(f'note: {VAL2014} has {num_images} images, a part of COCO, whose file has {NUM_VAL2014}')


def main() -> None:
    """Write both lists, or end with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'annotations',
        type=Path,
        nargs='?',
        default=Path('data/coco/annotations'),
        help=f'folder with {VAL2014} and {VAL2017} (default: %(default)s)',
    )
    parser.add_argument('--out', type=Path, help='folder to write to (default: the same)')
    args = parser.parse_args()
    try:
        convert(args.annotations, args.out or args.annotations)
    except (AnnotationsError, OSError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: error: {error}')


if __name__ == '__main__':
    main()
