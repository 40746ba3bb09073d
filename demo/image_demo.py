"""Draw what a checkpoint finds in images and videos: masks, boxes, class names and scores.

Pictures have the names of their images, and the folders too where two images have one name; what cannot be written in
the format it was read in becomes .png or .mp4. Videos keep their frame rate and lose their sound. What cannot be read
is named and skipped; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from run_installed import check_checkpoint, check_config, fail, require_mmdet  # noqa: E402

require_mmdet()

import cv2  # noqa: E402
import mmcv  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmcv.transforms import Compose  # noqa: E402
from mmdet.apis import init_detector  # noqa: E402
from mmdet.apis.det_inferencer import IMG_EXTENSIONS  # noqa: E402
from mmdet.registry import VISUALIZERS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import get_test_pipeline_cfg  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.runner.checkpoint import CheckpointLoader  # noqa: E402
from PIL import Image, UnidentifiedImageError  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from torch import nn  # noqa: E402

from embedmask_mmdet.analysis.thresholds import DEFAULT_THRESHOLD, load_thresholds, thresholds_file  # noqa: E402
from embedmask_mmdet.errors import CheckpointError, InputError, name_some  # noqa: E402

VIDEO_EXTENSIONS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
WRITTEN_AS_THEY_ARE = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.mp4')
DRAWN_SIZE = 640  # pixels of a picture, the root of its area, for which MMDetection's fonts and lines are made

warnings.filterwarnings('ignore', 'Warning: The .* is out of bounds')  # at the picture's edge, as of a box cut there
warnings.filterwarnings('ignore', '.*meshgrid')
Image.MAX_IMAGE_PIXELS = None  # the images are the user's own: large ones are no attack


class Drawer:
    """Detects, and draws what has a score of at least its class's threshold.

    Args:
        model: As :func:`load_model` returns it.
        thresholds: A score for each class.
        min_image_size: Short side in input pixels that images are resized to; None for the config's size.
    """

    def __init__(self, model: nn.Module, thresholds: list[float], min_image_size: int | None = None) -> None:
        self.model = model
        self.thresholds = torch.tensor(thresholds)
        self.pipeline = build_pipeline(model.cfg, min_image_size)
        drawing = dict(type='DetLocalVisualizer', name='visualizer', alpha=0.5)
        self.visualizer = VISUALIZERS.build({**drawing, **model.cfg.get('visualizer', {}), 'vis_backends': None})
        self.visualizer.dataset_meta = model.dataset_meta
        self.num_drawn = 0

    def prepare(self, image: np.ndarray) -> dict:
        """Make an image, ``(h, w, 3)`` uint8 in BGR, the model's input."""
        return self.pipeline(dict(img=image, img_id=0))

    @torch.no_grad()
    def detect(self, prepared: list[dict]) -> list[DetDataSample]:
        """Detect in a batch of what :meth:`prepare` returned."""
        return self.model.test_step(pseudo_collate(prepared)) if prepared else []

    def draw(self, image: np.ndarray, sample: DetDataSample, out_file: Path | None = None) -> None:
        """Draw detections on an image, ``(h, w, 3)`` uint8 in BGR, and write the picture to a file if there is one."""
        found = sample.pred_instances.cpu()
        sample.pred_instances = found[found.scores >= self.thresholds[found.labels]]
        self.num_drawn += len(sample.pred_instances)
        # Fonts and lines have sizes in points, so the resolution makes them fit a larger picture.
        self.visualizer.dpi = 100 * max(1.0, (image.shape[0] * image.shape[1]) ** 0.5 / DRAWN_SIZE)
        self.visualizer.fig_save.set_dpi(self.visualizer.dpi)
        self.visualizer.add_datasample(
            '',
            image[..., ::-1],
            sample,
            draw_gt=False,
            pred_score_thr=-1,
            out_file=out_file and str(out_file),
        )

    def picture(self) -> np.ndarray:
        """Return what was drawn last, ``(h, w, 3)`` uint8 in BGR."""
        return self.visualizer.get_image()[..., ::-1]


class Skipped(list):
    """What could not be read or written."""

    @contextlib.contextmanager
    def unless_fine(self, source: Path) -> Iterator[None]:
        """Name a file and go on if it cannot be read, detected in or written."""
        try:
            yield
        except (OSError, ValueError, cv2.error) as error:
            print(f'skipped {source}: {getattr(error, "strerror", None) or error}', file=sys.stderr)
            self.append(source)


def build_pipeline(cfg: Config, min_image_size: int | None) -> Compose:
    """Build a config's test pipeline for images in memory.

    Raises:
        InputError: There is a size to resize to, but nothing in the pipeline that resizes.
    """
    steps = copy.deepcopy(get_test_pipeline_cfg(cfg))
    steps[0]['type'] = 'mmdet.LoadImageFromNDArray'
    resizing = [step for step in steps if step['type'].endswith('Resize') and 'scale' in step]
    if min_image_size and not resizing:
        raise InputError(f'--min-image-size: the test pipeline of {cfg.filename} has no Resize with a scale')
    for step in resizing if min_image_size else ():
        # The long side's limit grows along, and never is less than that of COCO's configs.
        ratio = max(max(step['scale']) / min(step['scale']), 1333 / 800)
        step['scale'] = (round(ratio * min_image_size), min_image_size)
    return Compose(steps)


def load_model(cfg: Config, checkpoint: str, device: str, palette: str) -> nn.Module:
    """Build a detector with a checkpoint's weights.

    Raises:
        InputError: The weights, or the names of classes that come with them, are not of this config's model.
    """
    model = init_detector(cfg, checkpoint, palette, device)
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')
    given = {key.removeprefix('module.'): weight for key, weight in loaded.get('state_dict', loaded).items()}
    wrong = [
        key for key, weight in model.state_dict().items() if getattr(given.get(key), 'shape', None) != weight.shape
    ]
    if wrong:
        raise InputError(
            f'{checkpoint} is no checkpoint of {cfg.filename}: it lacks these weights, or has them in other shapes: '
            f'{name_some(wrong)}; give the checkpoint and the config that belong together'
        )
    classes = model.dataset_meta['classes']
    if len(classes) != model.bbox_head.num_classes:
        raise InputError(
            f'{checkpoint} is about {len(classes)} classes ({name_some(list(classes))}), but the model of '
            f'{cfg.filename} tells {model.bbox_head.num_classes} apart'
        )
    return model


def choose_thresholds(args: argparse.Namespace, classes: list[str]) -> list[float]:
    """Return a threshold for each class, and say in a line where they are from.

    Raises:
        InputError: The file of thresholds is unreadable or is about other classes.
    """
    if args.score_thr is not None:
        return [args.score_thr] * len(classes)
    path = args.thresholds or thresholds_file(args.checkpoint)
    if not args.thresholds and not path.is_file():
        print(
            f'Drawn is what has a score of {DEFAULT_THRESHOLD} or more. tools/analysis_tools/score_thresholds.py finds '
            'the best score for each class.'
        )
        return [DEFAULT_THRESHOLD] * len(classes)
    thresholds = load_thresholds(path, classes)
    older = path.stat().st_mtime < Path(args.checkpoint).expanduser().stat().st_mtime
    print(f'Score thresholds for each class: {path}{" (older than the checkpoint)" if older else ""}')
    return thresholds


def list_files(inputs: list[str], skipped: Skipped) -> list[Path]:
    """List the files that are given, and the images and videos of folders that are."""
    files = []
    for given in (Path(each).expanduser() for each in inputs):
        if not given.is_dir():
            files.append(given)
            continue
        with skipped.unless_fine(given):
            found = sorted(file for file in given.iterdir() if is_video(file) or file.suffix.lower() in IMG_EXTENSIONS)
            if not found:
                raise InputError('there are no images and no videos in this folder')
            files += found
    return list({os.path.abspath(file): file for file in files}.values())


def is_video(file: Path) -> bool:
    """Tell videos by their names."""
    return file.suffix.lower() in VIDEO_EXTENSIONS


def added_suffix(name: Path) -> str:
    """Return what makes a name one of a format that can be written in colour."""
    if name.suffix.lower() in WRITTEN_AS_THEY_ARE:
        return ''
    return '.mp4' if is_video(name) else '.png'


def name_outputs(files: list[Path], out_dir: Path) -> list[Path]:
    """Return where each file's picture goes, no two to the same place.

    Raises:
        InputError: An input would be overwritten.
    """
    names = [Path(file.name) for file in files]
    if len(set(names)) < len(names):
        absolute = [Path(os.path.abspath(file)) for file in files]
        common = os.path.commonpath([file.parent for file in absolute])
        names = [file.relative_to(common) for file in absolute]
    outputs = [out_dir / f'{name}{added_suffix(name)}' for name in names]
    overwritten = {file.resolve() for file in files} & {output.resolve() for output in outputs}
    if overwritten:
        raise InputError(f'{overwritten.pop()} would be overwritten by its picture: give another --out-dir')
    return outputs


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    """Go through items in lists of a size, the last of which may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def show_progress(batches: Iterable[list], name: str, total: float | None = None) -> Iterable[list]:
    """Draw a progress bar on stderr."""
    return track(batches, name, total, console=Console(stderr=True))


def read_image(path: Path) -> np.ndarray:
    """Read an image as training does: ``(h, w, 3)`` uint8 in BGR, upright, 16 bits scaled to 8, no alpha.

    Raises:
        OSError: The file is missing, unreadable or truncated.
        InputError: The file is no image.
    """
    # Some versions of OpenCV fill what is missing of a JPEG with grey; on the other hand, it knows formats of its own.
    with contextlib.suppress(UnidentifiedImageError), Image.open(path) as image:
        image.load()
    image = mmcv.imread(path) if path.stat().st_size else None
    if image is None:
        raise InputError('this is no whole image of a format that OpenCV reads')
    return image


def draw_images(drawer: Drawer, pairs: list[tuple[Path, Path]], batch_size: int, skipped: Skipped) -> None:
    """Write the picture of each image.

    Args:
        drawer: What detects and draws.
        pairs: File of an image, and of its picture.
        batch_size: How many to detect in at once.
        skipped: Takes those that fail.
    """
    batches = list(in_batches(pairs, batch_size))
    for batch in show_progress(batches, 'Images') if batches else ():
        ready = []
        for source, target in batch:
            with skipped.unless_fine(source):
                image = read_image(source)
                ready.append((source, target, image, drawer.prepare(image)))
        samples = drawer.detect([prepared for *_, prepared in ready])
        for (source, target, image, _), sample in zip(ready, samples):
            with skipped.unless_fine(source):
                drawer.draw(image, sample, target)


def read_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Read a video's frames, ``(h, w, 3)`` uint8 in BGR, as far as they can be read."""
    while (frame := video.read()[1]) is not None:
        yield frame


def draw_video(drawer: Drawer, source: Path, target: Path, batch_size: int) -> None:
    """Write a video with detections drawn on each frame.

    Raises:
        OSError: The file is missing, or the video cannot be written.
        InputError: The file is no video, or a part of it is missing; what there is has been drawn then.
    """
    source.stat()
    video = cv2.VideoCapture(str(source))
    expected = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = video.get(cv2.CAP_PROP_FPS)
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter()
    done = 0
    total = -(-expected // batch_size) if expected > 0 else None
    for frames in show_progress(in_batches(read_frames(video), batch_size), source.name, total):
        if not done and not writer.open(
            str(target), cv2.VideoWriter.fourcc(*'mp4v'), rate if rate > 0 else 25, frames[0].shape[1::-1]
        ):
            raise OSError(f'OpenCV cannot write {target}')
        for frame, sample in zip(frames, drawer.detect([drawer.prepare(frame) for frame in frames])):
            drawer.draw(frame, sample)
            writer.write(drawer.picture())
        done += len(frames)
    writer.release()
    if not done:
        raise InputError('this is no video that OpenCV reads')
    # What is said to be there is an estimate.
    if done < 0.9 * expected:
        raise InputError(f'only {done} of {expected} frames can be read')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('inputs', nargs='+', metavar='IMAGES_OR_FOLDER', help='images, videos, folders of them')
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), help='(default: outputs)')
    parser.add_argument('--device', help='(default: cuda:0 if there is one, else cpu)')
    parser.add_argument('--batch-size', type=int, default=1, help='images or frames to detect in at once (default: 1)')
    scores = parser.add_mutually_exclusive_group()
    scores.add_argument('--score-thr', type=float, help='draw what has at least this score, of any class')
    scores.add_argument(
        '--thresholds', type=Path, help='a score for each class (default: CHECKPOINT with .thresholds.json, if there)'
    )
    parser.add_argument('--min-image-size', type=int, help="short side to resize to (default: the config's)")
    parser.add_argument('--palette', default='none', choices=['none', 'coco', 'voc', 'citys', 'random'])
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, put into the config'
    )
    args = parser.parse_intermixed_args()
    for name in ('batch_size', 'min_image_size'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be 1 or more')
    return args


def prepare(args: argparse.Namespace) -> Drawer:
    """Load what is needed to draw.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        InputError: Config, checkpoint and thresholds do not go together, or there is no such device.
    """
    device = args.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'--device {device} cannot be used: {str(error).splitlines()[0]}') from error
    cfg = Config.fromfile(args.config)
    # A large image with many detections would not fit into memory as bitmaps.
    cfg.merge_from_dict({'model.test_cfg.mask_format': 'rle', **args.cfg_options})
    model = load_model(cfg, args.checkpoint, device, args.palette)
    return Drawer(model, choose_thresholds(args, model.dataset_meta['classes']), args.min_image_size)


def main() -> None:
    """Draw everything that is given."""
    args = parse_args()
    check_config(args.config)
    check_checkpoint(args.checkpoint)
    skipped = Skipped()
    files = list_files(args.inputs, skipped)
    if not files:
        fail('there is nothing to draw')
    try:
        pairs = list(zip(files, name_outputs(files, args.out_dir)))
        args.out_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(args.out_dir, os.W_OK):
            fail(f'the folder {args.out_dir} is not writable: give another --out-dir')
        drawer = prepare(args)
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except OSError as error:
        fail(f'{error.filename}: {error.strerror}')

    draw_images(drawer, [pair for pair in pairs if not is_video(pair[0])], args.batch_size, skipped)
    for source, target in pairs:
        if is_video(source):
            with skipped.unless_fine(source):
                draw_video(drawer, source, target, args.batch_size)
    drawn = len(set(files) - set(skipped))
    print(f'{drawn} of {len(files)} drawn into {args.out_dir}, with {drawer.num_drawn} instances')
    if skipped:
        sys.exit(f'{len(skipped)} skipped: {name_some(skipped)}')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
