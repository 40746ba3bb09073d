"""The page about data alone: what is in the annotation files, and which annotations are suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from mmengine.config import Config

from embedmask_mmdet.analysis.report import statistics
from embedmask_mmdet.analysis.report.charts import draw_histogram
from embedmask_mmdet.analysis.report.data import Labels, read_dataloader
from embedmask_mmdet.analysis.report.gallery import Gallery
from embedmask_mmdet.analysis.report.html import (
    Html,
    check_out,
    element,
    facts,
    grid,
    join,
    make_page,
    paragraph,
    section,
    table,
    write_page,
)
from embedmask_mmdet.analysis.report.suspicions import Suspicion, suspect_labels
from embedmask_mmdet.errors import InputError

NUM_CROPS = 24
MAX_UNREADABLE = 50
DATALOADERS = {'train_dataloader': 'Training data', 'val_dataloader': 'Validation data'}
NOTHING = 'Nothing suspicious was found.'


class Finding(Protocol):
    """What a check of the data found: how bad it is, such as ``error``, and a sentence."""

    severity: str
    message: str


def show_findings(findings: Sequence[Finding]) -> Html:
    """Show what the checks found."""
    rows = [[element('td', each.severity, class_=str(each.severity).lower()), each.message] for each in findings]
    lead = 'Each line is something to correct before training; errors would stop it or spoil its result.'
    return section('Problems', lead, table(['', 'problem'], rows))


def show_unreadable(labels: Labels) -> Html:
    """List annotations that cannot be used."""
    if not labels.unreadable:
        return Html('')
    rows = [
        [str(each.label_id), '-' if each.image_id is None else labels.image_name(each.image_id), each.reason]
        for each in labels.unreadable[:MAX_UNREADABLE]
    ]
    head = element('h3', f'Annotations that cannot be used ({len(labels.unreadable):,})')
    return join([head, table(['label', 'image', 'reason'], rows)])


def show_counts(labels: Labels) -> Html:
    """Show how much data there is."""
    per_image, sides = statistics.count_per_image(labels), statistics.measure_sides(labels)
    images = list(labels.images.values())
    pixels = sorted({(image.get('width', 0), image.get('height', 0)) for image in images}, key=str)
    numbers = {
        'images': f'{len(images):,}',
        'instances': f'{len(sides):,}',
        'classes': len(labels.names),
        'images without a label': f'{sum(number == 0 for number in per_image):,}',
        'instances in an image, median': f'{np.median(per_image):.0f}' if per_image else '-',
        'side of an instance, median': f'{np.median(sides):.0f} px' if sides else '-',
        'image sizes' if len(pixels) > 1 else 'image size': len(pixels)
        if len(pixels) != 1
        else '{}x{}'.format(*pixels[0]),
    }
    charts = [draw_histogram('Size of instances', 'square root of the area, in pixels', sides)]
    if len(per_image) > 1:
        charts.append(draw_histogram('Instances in an image', 'instances', per_image))
    return join([facts(numbers), grid(charts, 'charts')])


def show_labels(title: str, labels: Labels) -> Html:
    """Show the counts of a data set."""
    lead = (
        'Check that these are the images, the classes and the sizes that you expect; hover over a bar for its number.'
    )
    rows = statistics.tabulate_classes(labels)
    paths = element('div', f'{labels.ann_file}, images in {labels.image_folder or "."}', class_='paths')
    classes = table(['class', 'instances', 'images', 'median side in pixels'], rows)
    return section(title, lead, paths, show_counts(labels), classes, show_unreadable(labels))


def show_suspicions(title: str, labels: Labels, suspicions: Sequence[Suspicion], num_crops: int) -> Html:
    """Show the suspicious annotations of a data set."""
    lead = (
        'Left the image, right the label in green and its neighbors in white. The oddest are first; correct those '
        'that are wrong in your labeling tool, by image name and label id.'
    )
    pictures = Gallery(labels, num_crops=num_crops).show_suspicions(suspicions)
    return section(title, lead, pictures or paragraph(NOTHING))


def name_data_sets(cfg: Config) -> list[tuple[str, Labels]]:
    """Read the training and validation data of a config, each with a title.

    Raises:
        InputError: If a file cannot be read, or the config has neither.
    """
    named, files = [], set()
    for key, title in DATALOADERS.items():
        data_sets = read_dataloader(cfg, key) if cfg.get(key) else []
        for number, labels in enumerate(data_sets, start=1):
            if labels.ann_file not in files:
                named.append((f'{title} {number}' if len(data_sets) > 1 else title, labels))
                files.add(labels.ann_file)
    if not named:
        raise InputError('the config has neither train_dataloader nor val_dataloader. Add one of them.')
    return named


def write_data_page(cfg: Config, out: str | Path, findings: Sequence[Finding] = (), num_crops: int = NUM_CROPS) -> None:
    """Write a page about the training and validation data of a config.

    Args:
        cfg: The config.
        out: The HTML file; an older page is replaced, other files are not.
        findings: What checks of the data found.
        num_crops: Highest number of pictures of a kind.

    Raises:
        InputError: If the data cannot be read or the page cannot be written.
    """
    check_out(out)
    sections, titles = [], []
    if findings:
        sections.append(show_findings(findings))
        titles.append('Problems')
    try:
        data_sets = name_data_sets(cfg)
    except InputError:
        if not findings:
            raise
        data_sets = []  # the findings say what is wrong with them
    for title, labels in data_sets:
        sections.append(show_labels(title, labels))
        titles.append(title)
    for title, labels in data_sets:
        titles.append(f'{title}: suspicious labels')
        sections.append(show_suspicions(titles[-1], labels, suspect_labels(labels), num_crops))
    intro = paragraph('What is in the annotation files of this config, and which annotations are probably wrong.')
    name = Path(cfg.filename).name if cfg.filename else 'config'
    write_page(out, make_page(f'Data of {name}', intro, sections, titles))
