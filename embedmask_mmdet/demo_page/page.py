"""The page: widgets of Gradio, and what happens when somebody uses them."""

from __future__ import annotations

import functools
import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr
import numpy as np

from embedmask_mmdet.demo_page.downloads import clean_name, make_coco, make_masks
from embedmask_mmdet.demo_page.onnx_model import OnnxModel, OnnxResult
from embedmask_mmdet.demo_page.picture import PARTS, draw_detections, find_instance, make_thumbnail
from embedmask_mmdet.demo_page.uploads import UploadLimits
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.media import IMAGE_EXTENSIONS, SkippedFiles
from embedmask_mmdet.runtime import Detections

SCORE_THR = 0.3
MASK_THR = 0.5
MAX_CLASSES = 8  # that the heading names
KEPT_SECONDS = 1800  # of an image that nobody looks at
MESSAGE_SECONDS = 8
MODEL_QUEUE = 'model'  # one event at a time
LABEL = 'Drop an image here'
LABEL_WITH_EXAMPLES = 'Drop an image here, or choose one below'
HOW_TO_START = 'Drop an image, or choose an example.'
HOW_TO_EXPLAIN = 'Click an instance in the picture to see how its mask comes about.'
NOTHING_HERE = 'There is no instance at this place.'
HOW_TO_ASK = 'Click an instance in the picture.'
NOT_EXPLAINED = (
    'An ONNX file has no embeddings to show. Start the page with a config and a checkpoint to see how this mask '
    'comes about.'
)
# The page downloads a file as soon as it has been made.
CLICK_LINK = "() => setTimeout(() => document.querySelector('#{id}')?.click(), 100)"


def hide_pictures() -> tuple[dict, dict]:
    """Take the explanation away."""
    return gr.update(value=None, visible=False), gr.update(value=None, visible=False)


@dataclass(frozen=True, eq=False)
class Shown:
    """The image on the page of a visitor.

    Attributes:
        result: What the model found.
        name: Of the file.
        seconds: That the detection took.
    """

    result: OnnxResult | Any
    name: str
    seconds: float


@dataclass(frozen=True)
class Settings:
    """What the sliders and boxes say.

    Attributes:
        score_thr: Lowest score of a detection that is shown.
        mask_thr: Probability above which a pixel belongs to a mask; None for that of the model.
        parts: What to draw.
    """

    score_thr: float
    mask_thr: float | None
    parts: Sequence[str]

    def apply(self, shown: Shown) -> Detections:
        """Return the detections to show."""
        detections = shown.result.cut_masks_at(self.mask_thr)
        return detections[detections.scores >= self.score_thr]


def warn(handler: Callable, num_outputs: int) -> Callable:
    """Show errors that a visitor can mend as a message, and leave the page as it is.

    Args:
        handler: What an event calls.
        num_outputs: Number of widgets that it changes.
    """

    @functools.wraps(handler)
    def handle(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except InputError as error:
            gr.Warning(html.escape(str(error)), duration=MESSAGE_SECONDS)
            return tuple(gr.skip() for _ in range(num_outputs))

    return handle


def describe(detections: Detections, shown: Shown) -> str:
    """Say what was found, in Markdown."""
    height, width = detections.image_shape
    names = [detections.name_class(label) for label in detections.labels.tolist()]
    counts = ', '.join(f'{names.count(name)} {html.escape(name)}' for name in sorted(set(names)))
    found = f'**{counts or "nothing found"}**'
    return (
        f'{html.escape(shown.name)}: {found} &nbsp;·&nbsp; {width}x{height} pixels &nbsp;·&nbsp; {shown.seconds:.2f} s'
    )


def describe_instance(detections: Detections, index: int) -> str:
    """Say what is known about a detection, in Markdown."""
    crop = next(iter(detections[index].crops()))
    x1, y1, x2, y2 = detections.bboxes[index].round().astype(int).tolist()
    name = html.escape(detections.name_class(int(detections.labels[index])))
    return (
        f'**{index + 1}. {name}**, score {detections.scores[index]:.2f}, box ({x1}, {y1}) to ({x2}, {y2}), '
        f'mask of {np.count_nonzero(crop.bitmap):,} pixels'
    )


@dataclass
class Page:
    """The page of a model.

    Args:
        model: An ``OnnxModel`` or a ``TorchModel``.
        explains: Whether it can explain a detection. It then has pictures for it.
        limits: Of uploads.
        examples: Image files to choose from.
    """

    model: OnnxModel | Any
    explains: bool = False
    limits: UploadLimits = field(default_factory=UploadLimits)
    examples: Sequence[Path] = ()

    # What happens -----------------------------------------------------------------------------------------------------

    def make_settings(self, score_thr: float, mask_thr: float, parts: Sequence[str]) -> Settings:
        """Collect the values of the widgets, which come from a client: anything may be in them."""
        mask_thr = None if self.model.mask_thr is None else float(np.clip(mask_thr, 0.01, 0.99))
        return Settings(float(score_thr), mask_thr, [part for part in PARTS if part in parts])

    def detect(self, file: Path, name: str, *settings: Any) -> tuple:
        """Detect in an image file and fill the page."""
        image = self.limits.read(file)
        start = time.perf_counter()
        result = self.model.detect(image)
        shown = Shown(result, name, time.perf_counter() - start)
        return shown, *self.redraw(shown, *settings)

    def detect_upload(self, file: str | None, *settings: Any) -> tuple:
        """Detect in an uploaded file, which Gradio has put into its own folder."""
        if not file:
            raise InputError(HOW_TO_START)
        return self.detect(Path(file), Path(file).name, *settings)

    def detect_example(self, event: gr.SelectData, *settings: Any) -> tuple:
        """Detect in an example. The client only says which."""
        if not isinstance(event.index, int) or not 0 <= event.index < len(self.examples):
            raise InputError('There is no such example. Load the page again.')
        file = self.examples[event.index]
        return self.detect(file, file.name, *settings)

    def redraw(self, shown: Shown | None, *settings: Any) -> tuple:
        """Draw the detections again, with nothing selected. The network does not run."""
        if shown is None:
            raise InputError(HOW_TO_START)
        settings = self.make_settings(*settings)
        detections = settings.apply(shown)
        picture = draw_detections(shown.result.image, detections, settings.parts)
        hint = HOW_TO_EXPLAIN if self.explains else HOW_TO_ASK
        buttons = [gr.update(interactive=True)] * 2
        return picture, describe(detections, shown), None, hint if len(detections) else '', *hide_pictures(), *buttons

    def select(self, event: gr.SelectData, shown: Shown | None, *settings: Any) -> tuple:
        """Mark the instance that was clicked."""
        if shown is None:
            raise InputError(HOW_TO_START)
        settings = self.make_settings(*settings)
        detections = settings.apply(shown)
        selected = find_instance(detections, *map(float, event.index))
        about = NOTHING_HERE if selected is None else describe_instance(detections, selected)
        if selected is not None and not self.explains:
            about = f'{about}\n\n{NOT_EXPLAINED}'
        return draw_detections(shown.result.image, detections, settings.parts, selected), selected, about

    def explain(self, shown: Shown | None, selected: int | None, score_thr: float) -> tuple:
        """Draw how the mask of the selected instance comes about."""
        if shown is None or selected is None:
            return hide_pictures()
        pictures = shown.result.explain(int(selected), float(score_thr))
        return tuple(gr.update(value=picture, visible=True) for picture in pictures)

    def write(self, make: Callable[[Detections, str], tuple[str, bytes]], shown: Shown | None, *settings: Any) -> str:
        """Write a file to download; return its path in a new folder inside Gradio's own."""
        if shown is None:
            raise gr.Error(HOW_TO_START, print_exception=False)
        name, content = make(self.make_settings(*settings).apply(shown), shown.name)
        path = Path(mkdtemp(dir=gr.utils.get_upload_folder()), name)
        path.write_bytes(content)
        return str(path)

    # What it looks like -----------------------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        """Build the page."""
        with gr.Blocks(
            title=f'EmbedMask: {self.model.name}',
            analytics_enabled=False,
            delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
            fill_width=True,
        ) as blocks:
            gr.Markdown(self._make_heading())
            with gr.Row():
                with gr.Column(scale=3, min_width=480):
                    picture, summary = self._make_picture()
                with gr.Column(scale=1, min_width=350):
                    file, examples, settings, buttons = self._make_controls()
            about, pictures = self._make_explanation()
            shown, selected = gr.State(time_to_live=KEPT_SECONDS), gr.State()
            self._connect(shown, selected, picture, summary, about, pictures, file, examples, settings, buttons)
        return blocks

    def _make_heading(self) -> str:
        names = ', '.join(self.model.class_names[:MAX_CLASSES]) or 'no names'
        rest = len(self.model.class_names) - MAX_CLASSES
        more = f' and {rest} more' if rest > 0 else ''
        return f'# EmbedMask\n{html.escape(self.model.name)} finds: {html.escape(names)}{more}'

    def _make_picture(self) -> tuple[gr.Image, gr.Markdown]:
        picture = gr.Image(
            label='Picture', interactive=False, format='png', buttons=['fullscreen'], elem_id='picture', height='68vh'
        )
        return picture, gr.Markdown(HOW_TO_START, elem_id='summary')

    def _make_controls(self) -> tuple[gr.File, gr.Gallery | None, list, list]:
        file = gr.File(
            label=LABEL_WITH_EXAMPLES if self.examples else LABEL,
            file_types=list(IMAGE_EXTENSIONS),
            height=150,
            elem_id='upload',
        )
        examples = self._make_examples() if self.examples else None
        choosable = self.model.mask_thr is not None
        settings = [
            gr.Slider(0.0, 1.0, SCORE_THR, step=0.01, label='Lowest score', elem_id='score'),
            gr.Slider(
                *(0.05, 0.95, round(self.model.mask_thr or MASK_THR, 2)),
                step=0.01,
                label='Mask threshold',
                info='A pixel belongs to a mask if its probability is higher. Boxes and scores stay.',
                visible=choosable,
                elem_id='mask',
            ),
            gr.CheckboxGroup(list(PARTS), value=list(PARTS), label='Show', elem_id='parts'),
        ]
        with gr.Row():
            buttons = [
                gr.Button('Save COCO JSON', size='sm', interactive=False, min_width=120),
                gr.Button('Save PNG masks', size='sm', interactive=False, min_width=120),
            ]
        return file, examples, settings, buttons

    def _make_examples(self) -> gr.Gallery:
        skipped, thumbnails, readable = SkippedFiles(), [], []
        for example in self.examples:
            with skipped.skip_on_error(example):
                thumbnails.append(make_thumbnail(self.limits.read(example)))
                readable.append(example)
        self.examples = readable
        return gr.Gallery(
            thumbnails,
            label='Examples',
            show_label=False,
            columns=3,
            height=150,
            object_fit='cover',
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id='examples',
        )

    def _make_explanation(self) -> tuple[gr.Markdown, list[gr.Image]]:
        about = gr.Markdown(elem_id='about')
        options = dict(interactive=False, format='png', buttons=['fullscreen'], visible=False)
        return about, [gr.Image(elem_id=name, show_label=False, **options) for name in ('instance', 'pixels')]

    def _connect(
        self,
        shown: gr.State,
        selected: gr.State,
        picture: gr.Image,
        summary: gr.Markdown,
        about: gr.Markdown,
        pictures: list[gr.Image],
        file: gr.File,
        examples: gr.Gallery | None,
        settings: list,
        buttons: list[gr.Button],
    ) -> None:
        redrawn = [picture, summary, selected, about, *pictures, *buttons]
        filled = [shown, *redrawn]
        once = dict(api_visibility='private', concurrency_id=MODEL_QUEUE, concurrency_limit=1, show_progress_on=picture)
        uploaded = file.upload(warn(self.detect_upload, len(filled)), [file, *settings], filled, **once)
        # The field is empty again for the next image.
        uploaded.then(lambda: None, None, file, show_progress='hidden', api_visibility='private')
        if examples is not None:
            examples.select(warn(self.detect_example, len(filled)), settings, filled, **once)
        quietly = dict(once, show_progress='hidden')
        changes = [widget.change for widget in settings]
        redraw = warn(self.redraw, len(redrawn))
        gr.on(changes, redraw, [shown, *settings], redrawn, trigger_mode='always_last', **quietly)
        clicked = picture.select(warn(self.select, 3), [shown, *settings], [picture, selected, about], **quietly)
        if self.explains:
            clicked.then(self.explain, [shown, selected, settings[0]], pictures, **dict(once, show_progress_on=about))
        for button, (name, make) in zip(buttons, FILE_MAKERS.items()):
            link = gr.DownloadButton(elem_id=name, visible='hidden')
            written = button.click(functools.partial(self.write, make), [shown, *settings], link, **quietly)
            written.success(None, js=CLICK_LINK.format(id=name))


def make_coco_file(detections: Detections, name: str) -> tuple[str, bytes]:
    """Return the name and the content of the COCO file for an image."""
    return f'{clean_name(Path(name).stem)}-coco.json', make_coco(detections, name).encode()


def make_masks_file(detections: Detections, name: str) -> tuple[str, bytes]:
    """Return the name and the content of the zip file for an image."""
    return f'{clean_name(Path(name).stem)}-masks.zip', make_masks(detections)


FILE_MAKERS = {'coco-link': make_coco_file, 'masks-link': make_masks_file}
