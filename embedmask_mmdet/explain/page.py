"""The HTML page of an explanation, which needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from embedmask_mmdet.analysis.report.html import Html, element, figure, make_page, paragraph, section, table
from embedmask_mmdet.explain.panels import LEVELS
from embedmask_mmdet.explain.values import DetectionValues, ImageValues

JPEG_QUALITY = 90
WIDE_FIGURES = Html('<style>figure img { max-width: 100%; background: none; }</style>')
EQUATION = Html('exp(-&Sigma;<sub>c</sub> m<sub>c</sub> (p<sub>c</sub> - q<sub>c</sub>)<sup>2</sup>)')
INTRO = (
    'EmbedMask gives each pixel an embedding p: a list of numbers. Each detection has an embedding q and margins m. '
    'A pixel belongs to the detection with probability ',
    element('b', EQUATION),
    ', the sum over the channels c. Two channels are spatial: they say where in the image an object is. The others say '
    'what it looks like. All lengths and positions are pixels of the input of the network.',
)
HOW_TO_READ_IMAGE = (
    'Pixels of one object should point to one place. Pixels of different objects may look equal, because they point to '
    'different places. What background pixels look like and point to only has to differ from all detections.'
)
HOW_TO_READ_DETECTION = (
    'Margins say how far embeddings may be apart. Of the spatial channels, they are the ellipse: a pixel that points '
    'to its border has the threshold as its probability, if it also looks like the detection.'
)


def encode(picture: np.ndarray) -> str:
    """Return a picture ``(h, w, 3)`` in RGB as the data URI of a JPEG."""
    _, data = cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return 'data:image/jpeg;base64,' + base64.b64encode(data.tobytes()).decode()


def format_numbers(numbers: Iterable[float]) -> str:
    """Format lengths or positions."""
    return ', '.join(f'{number:.1f}' for number in numbers)


def list_facts(values: ImageValues, detection: DetectionValues) -> Html:
    """List the numbers of a detection."""
    rows = [
        ('location (x, y)', format_numbers(detection.point)),
        ('box (left, top, right, bottom)', format_numbers(detection.bbox)),
        ('center of the ellipse (x, y)', format_numbers(detection.ellipse.center)),
        ('half width and half height of the ellipse', format_numbers(detection.ellipse.radii)),
        *(
            (f'image pixels with a probability above {thr:g}', f'{(detection.image_prob > thr).sum():,}')
            for thr in LEVELS
        ),
        (f'image pixels of the mask (above {values.mask_thr:g})', f'{detection.mask.sum():,}'),
    ]
    return table(('of this detection', ''), rows)


def list_channels(detection: DetectionValues) -> Html:
    """List embedding and margin by channel, to be unfolded."""
    embeds, margins = detection.proposal_embed.tolist(), detection.proposal_margin.tolist()
    names = ['x', 'y', *(str(channel) for channel in range(3, len(embeds) + 1))]
    rows = [(name, float(embed), float(margin)) for name, embed, margin in zip(names, embeds, margins)]
    numbers = table(('channel c', 'embedding q', 'margin m'), rows)
    return element('details', element('summary', 'Embedding and margin by channel'), numbers)


def make_explanation_page(values: ImageValues, title: str, image: np.ndarray, detections: Sequence[np.ndarray]) -> str:
    """Make the page.

    Args:
        values: What is explained.
        title: Title of the page.
        image: Picture of the image, ``(h, w, 3)`` uint8 in RGB.
        detections: Pictures of the detections.
    """
    sections = [
        section('Image', HOW_TO_READ_IMAGE, figure(encode(image), alt='image, pixel embedding, where pixels point'))
    ]
    titles = ['Image']
    for number, (detection, picture) in enumerate(zip(values.detections, detections), start=1):
        titles.append(f'Detection {number}: {detection.class_name}, {detection.score:.2f}')
        shown = figure(encode(picture), alt='location, ellipse, probabilities, thresholds and mask')
        numbers = list_facts(values, detection), list_channels(detection)
        sections.append(section(titles[-1], HOW_TO_READ_DETECTION, shown, *numbers))
    return make_page(title, Html(f'{WIDE_FIGURES}{paragraph(*INTRO)}'), sections, titles)
