"""Train EmbedMask on a microscopy image, test it on the part held out, and draw what it found (`make demo`)."""

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import cv2
import mmcv
import mmengine
import numpy as np
from matplotlib import colormaps
from mmdet.structures.mask import bitmap_to_polygon
from mmengine.config import Config
from mmengine.visualization import Visualizer
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

ROOT = Path(__file__).resolve().parents[1]
DATA = Path('data/nuclei')
CONFIG = Path('configs/embedmask-plus_r18_nuclei.py')
DRAWN_SCORE = 0.3  # what is drawn as found; the metrics count every detection


def run_stage(name: str, script: str, *args: str | Path) -> float:
    """Run a script, its output shown, and return its seconds; end the demo if it fails."""
    command = [sys.executable, script, *map(str, args)]
    print(f'\n== {name}: python {shlex.join(command[1:])}', flush=True)
    start = time.perf_counter()
    # Where other programs want the cores too, threads that wait by spinning make training many times slower.
    environment = {'OMP_WAIT_POLICY': 'passive', **os.environ}
    if subprocess.run(command, env=environment).returncode:
        sys.exit(f'\nERROR: {name} failed; the lines above say why. `make demo` goes on from there once that is cured.')
    return time.perf_counter() - start


def final_checkpoint(work_dir: Path, config: Path) -> Path:
    """Return where training leaves its last checkpoint."""
    max_iters = Config.fromfile(config, import_custom_modules=False).train_cfg.max_iters
    return work_dir / f'iter_{max_iters}.pth'


def was_trained(checkpoint: Path, config: Path) -> bool:
    """Tell whether a training came to its end, with the config as it is now."""
    pointer = checkpoint.with_name('last_checkpoint')
    # The pointer is written after the checkpoint, so that one cut short in writing is not taken for finished.
    if not checkpoint.exists() or not pointer.exists() or Path(pointer.read_text()).name != checkpoint.name:
        return False
    return checkpoint.stat().st_mtime > config.stat().st_mtime


def distinct_colors(number: int) -> list[tuple[int, int, int]]:
    """Return bright colours, neighbours in the list far apart in hue."""
    hues = np.arange(number) * 0.618 % 1
    return [tuple(color[:3]) for color in colormaps['hsv'](hues, bytes=True).tolist()]


def draw_instances(image: np.ndarray, masks: list[np.ndarray], title: str, zoom: int = 4) -> np.ndarray:
    """Draw every mask in a colour of its own, with its outline, on an enlarged image with a title above.

    Args:
        image: `(h, w, 3)` uint8, RGB.
        masks: Of `(h, w)` uint8, not 0 inside.
        title: One line of text.
        zoom: By how much both are enlarged.

    Returns:
        uint8 RGB picture of `zoom` times the size, below a bar for the title.
    """
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    visualizer = Visualizer(image=cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))
    if masks:
        enlarged = np.stack([cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) for mask in masks])
        outlines = [bitmap_to_polygon(mask)[0] for mask in enlarged]
        colors = distinct_colors(len(masks))
        # All at once, as each call of the visualizer draws everything before it again.
        visualizer.draw_binary_masks(enlarged.astype(bool), colors=colors, alphas=0.35)
        visualizer.draw_polygons(
            [polygon for polygons in outlines for polygon in polygons],
            edge_colors=[color for color, polygons in zip(colors, outlines) for _ in polygons],
            line_widths=2,
        )
    bar = np.zeros((40, size[0], 3), np.uint8)
    cv2.putText(bar, title, (10, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2, cv2.LINE_AA)
    return np.vstack([bar, visualizer.get_image()])


def draw_pictures(dataset: COCO, predictions: list[dict], image_dir: Path, out: Path) -> list[Path]:
    """Draw ground truth beside prediction for each tested image.

    Args:
        dataset: The annotations.
        predictions: What `tools/test.py --out` wrote, one dict for each image.
        image_dir: Folder of the images.
        out: Folder of the pictures.

    Returns:
        The pictures' files.
    """
    files = []
    for prediction in predictions:
        image_id = prediction['img_id']
        file_name = dataset.imgs[image_id]['file_name']
        image = mmcv.imread(image_dir / file_name, channel_order='rgb')
        truth = [dataset.annToMask(annotation) for annotation in dataset.imgToAnns[image_id]]
        found = prediction['pred_instances']
        masks = [mask_utils.decode(rle) for rle, score in zip(found['masks'], found['scores']) if score > DRAWN_SCORE]
        sides = [
            draw_instances(image, truth, f'ground truth: {len(truth)} nuclei'),
            draw_instances(image, masks, f'prediction: {len(masks)} with a score above {DRAWN_SCORE}'),
        ]
        files.append(out / Path(file_name).with_suffix('.png'))
        mmcv.imwrite(mmcv.rgb2bgr(np.hstack(sides)), str(files[-1]))
    return files


def train(work_dir: Path, checkpoint: Path) -> float:
    """Train unless that was done before; return the seconds it took."""
    if was_trained(checkpoint, CONFIG):
        print(f'\n== training: was done before. To train anew, remove {work_dir}', flush=True)
        return 0.0
    return run_stage('training', 'tools/train.py', CONFIG, '--work-dir', work_dir)


def test(work_dir: Path, checkpoint: Path) -> tuple[dict[str, float], list[dict], float]:
    """Test; return the metrics, the predictions and the seconds it took."""
    dump = work_dir / 'predictions.pkl'
    seconds = run_stage('test', 'tools/test.py', CONFIG, checkpoint, '--work-dir', work_dir, '--out', dump)
    # Every run of tools/test.py writes its metrics into a folder of its own.
    newest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text()), mmengine.load(dump), seconds


def main() -> None:
    """Go from nothing to metrics and pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo', help='folder for what it produces')
    work_dir = parser.parse_args().work_dir.resolve()
    os.chdir(ROOT)
    if work_dir.is_relative_to(ROOT):
        work_dir = work_dir.relative_to(ROOT)

    seconds = dict(data=run_stage('data', 'tools/dataset_converters/nuclei.py', '--out', DATA))
    checkpoint = final_checkpoint(work_dir, CONFIG)
    seconds['training'] = train(work_dir, checkpoint)
    metrics, predictions, seconds['test'] = test(work_dir, checkpoint)

    start = time.perf_counter()
    with contextlib.redirect_stdout(None):
        dataset = COCO(DATA / 'annotations/test.json')
    pictures = draw_pictures(dataset, predictions, DATA / 'images', work_dir / 'pictures')
    seconds['pictures'] = time.perf_counter() - start

    print(f'\n== result, on the right third of the image: {len(dataset.anns)} nuclei that training never saw')
    for kind in ('bbox', 'segm'):
        print(f'{kind}  AP {metrics[f"coco/{kind}_mAP"]:.3f}  AP50 {metrics[f"coco/{kind}_mAP_50"]:.3f}')
    print('ground truth beside prediction:', *pictures)
    print(f'checkpoint: {checkpoint} (demo/embedmask.ipynb shows how to use it)')
    print('seconds:', ', '.join(f'{stage} {value:.0f}' for stage, value in seconds.items()))
    print(f'For data of your own begin with a copy of {CONFIG}.')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
