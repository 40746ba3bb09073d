"""Check that images, categories and annotations have the keys that MMDetection reads, with values of their types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import chain

import numpy as np

from embedmask_mmdet.engine.data_checks.findings import Finding, error, warning
from embedmask_mmdet.errors import name_some

NUMBER = {int, float}
KEYS = {
    'images': dict(id={int, float, str}, height={int}, width={int}),
    'categories': dict(id=NUMBER, name={str}),
    'annotations': dict(id=NUMBER, image_id={int, float, str}, category_id=NUMBER, bbox={list}, area=NUMBER),
}
ADVICE = dict(
    id='Number the entries from 1',
    file_name="Write the file's name, relative to the image folder",
    height='Write the height of the image in pixels, a whole number',
    width='Write the width of the image in pixels, a whole number',
    name='Write the name of the class',
    image_id='Write the "id" of its image, of the same type as there',
    category_id='Write the "id" of its category, a number',
    bbox='Write [left, top, width, height] in pixels, or compute it with fill_in.py of docs/own-data.md',
    area='Write the area in pixels, or compute it with fill_in.py of docs/own-data.md',
)
JSON_TYPES = {str: 'a string', bool: 'true or false', type(None): 'null', list: 'a list', dict: 'an object'}
MISSING = object()


def name_entries(entries: list, indexes: Collection[int]) -> str:
    """Name entries by their ids and, where they have none, by their position."""
    names = []
    for index in indexes:
        entry = entries[index]
        has_id = isinstance(entry, dict) and 'id' in entry
        name = f'id {entry["id"]}' if has_id else f'number {index + 1} in the list'
        file_name = entry.get('file_name') if isinstance(entry, dict) else None
        names.append(f'{name} ({file_name})' if file_name else name)
    return name_some(names)


def find_wrong_key(kind: str, entries: list[dict], key: str, allowed: set[type]) -> Iterator[Finding]:
    """Find entries that lack a key, or have it with a value of another type."""
    column = [entry.get(key, MISSING) for entry in entries]
    if set(map(type, column)) <= allowed:
        return
    wrong = [index for index, value in enumerate(column) if type(value) not in allowed]
    missing = [index for index in wrong if column[index] is MISSING]
    details = locate(kind, entries, missing or wrong)
    if missing:
        yield error(
            f'"{kind}" without "{key}": {name_entries(entries, missing)}. {ADVICE[key]}.',
            **details,
        )
        return
    value = column[wrong[0]]
    yield error(
        f'"{key}" in "{kind}" is {JSON_TYPES.get(type(value), value)}: {name_entries(entries, wrong)}. {ADVICE[key]}.',
        **details,
    )


def locate(kind: str, entries: list[dict], indexes: Collection[int]) -> dict[str, list]:
    """Return the entries as the images or annotations of a finding."""
    if kind == 'images':
        return dict(images=[str(entries[index].get('file_name', '')) for index in indexes])
    if kind == 'annotations':
        return dict(annotations=[entries[index].get('id') for index in indexes])
    return {}


def find_repeated_ids(kind: str, entries: list[dict]) -> Iterator[Finding]:
    """Find ids that several entries have."""
    ids = [entry['id'] for entry in entries]
    if len(set(ids)) == len(ids):
        return
    repeated = [entry_id for entry_id, count in Counter(ids).items() if count > 1]
    advice = ', for example with fill_in.py of docs/own-data.md' if kind == 'annotations' else ''
    indexes = [index for index, entry_id in enumerate(ids) if entry_id in set(repeated)]
    yield error(
        f'several "{kind}" have the same id: {name_some(repeated)}. Number them from 1{advice}.',
        **locate(kind, entries, indexes),
    )


def find_wrong_keys(content: dict) -> Iterator[Finding]:
    """Find lists that are no lists of objects, and keys that are missing or of a wrong type."""
    for kind, keys in KEYS.items():
        entries = content.get(kind, [])
        if not isinstance(entries, list) or set(map(type, entries)) - {dict}:
            yield error(f'"{kind}" is not a list of objects. Export the file again.')
            continue
        found = [finding for key, allowed in keys.items() for finding in find_wrong_key(kind, entries, key, allowed)]
        yield from found or find_repeated_ids(kind, entries)
    if content['images'] == []:
        yield error('"images" is empty. Export the file again, with the images.')
    if content['categories'] == []:
        yield error('"categories" is empty. Export the file again, with the categories.')


def find_wrong_sizes(content: dict) -> Iterator[Finding]:
    """Find images without pixels."""
    images = content['images']
    wrong = [index for index, image in enumerate(images) if min(image['height'], image['width']) < 1]
    if wrong:
        yield error(
            f'"height" or "width" in "images" is below 1: {name_entries(images, wrong)}. {ADVICE["height"]}.',
            **locate('images', images, wrong),
        )


def find_wrong_crowd_flags(content: dict) -> Iterator[Finding]:
    """Find values of "iscrowd" that could mean both; null and an empty string count as 0."""
    annotations = content.get('annotations', [])
    values = [annotation.get('iscrowd') for annotation in annotations]
    wrong = [index for index, value in enumerate(values) if value is not None and value not in (0, 1, '')]
    if wrong:
        yield error(
            f'"iscrowd" in "annotations" is {values[wrong[0]]!r}: {name_entries(annotations, wrong)}. Write 0 for an '
            'object, 1 for a region of objects that were not separated.',
            **locate('annotations', annotations, wrong),
        )


def find_unknown_references(content: dict) -> Iterator[Finding]:
    """Find annotations whose image or category the file does not list."""
    annotations = content.get('annotations', [])
    for key, kind in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in content[kind]}
        wrong = [index for index, annotation in enumerate(annotations) if annotation[key] not in known]
        if not wrong:
            continue
        make = error if len(wrong) == len(annotations) else warning
        example = annotations[wrong[0]][key]
        hint = ''
        if any(str(entry_id) == str(example) for entry_id in known):
            hint = f' One is a string and the other a number: write {key} as "id" is written in "{kind}".'
        yield make(
            f'{len(wrong)} of {len(annotations)} annotations have a "{key}" that "{kind}" does not list, for example '
            f'{example!r}: {name_entries(annotations, wrong)}. They are ignored: correct or remove them.{hint}',
            **locate('annotations', annotations, wrong),
        )


def find_file_name_problems(content: dict) -> Iterator[Finding]:
    """Find images without a file name, and images that are listed several times.

    What one of several entries lacks would be learned as background.
    """
    yield from find_wrong_key('images', content['images'], 'file_name', {str})
    counts = Counter(image.get('file_name') for image in content['images'] if image.get('file_name'))
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        yield warning(
            f'"images" lists the same file several times: {name_some(repeated)}. Give all its annotations one '
            '"image_id", or their instances count as background of each other.',
            images=repeated,
        )


def are_boxes(boxes: list[list]) -> bool:
    """Return whether all boxes are four finite numbers."""
    return (
        set(map(len, boxes)) <= {4}
        and set(map(type, chain.from_iterable(boxes))) <= NUMBER
        and bool(np.isfinite(np.fromiter(chain.from_iterable(boxes), float)).all())
    )


def find_wrong_boxes(content: dict) -> Iterator[Finding]:
    """Find boxes that are not four finite numbers, and areas that are not finite."""
    annotations = content.get('annotations', [])
    boxes = [annotation['bbox'] for annotation in annotations]
    if not are_boxes(boxes):
        wrong = [index for index, box in enumerate(boxes) if not are_boxes([box])]
        yield error(
            f'"bbox" in "annotations" is not four finite numbers: {name_entries(annotations, wrong)}. '
            f'{ADVICE["bbox"]}.',
            **locate('annotations', annotations, wrong),
        )
    areas = np.array([annotation['area'] for annotation in annotations], float)
    wrong = np.flatnonzero(~np.isfinite(areas)).tolist()
    if wrong:
        yield error(
            f'"area" in "annotations" is not finite: {name_entries(annotations, wrong)}. {ADVICE["area"]}.',
            **locate('annotations', annotations, wrong),
        )


def find_structure_problems(content: dict) -> list[Finding]:
    """Check keys, types, ids and references of an annotation file.

    Args:
        content: With "images" and "categories", as :func:`read_annotation_file` returns it.

    Returns:
        What is wrong. If there are errors, other checks must not rely on the keys.
    """
    found = list(find_wrong_keys(content))
    if found:
        return found
    checks = (
        find_wrong_sizes,
        find_wrong_crowd_flags,
        find_unknown_references,
        find_wrong_boxes,
    )
    return [finding for check in checks for finding in check(content)]
