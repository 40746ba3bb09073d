"""Draw ground truth beside predictions, with the same color for an instance on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
from matplotlib import colormaps
from mmdet.structures.mask import bitmap_to_polygon
from mmengine.visualization import Visualizer
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from scipy.optimize import linear_sum_assignment

MATCHED_IOU = 0.5
GOLDEN_RATIO = 0.618
TITLE_HEIGHT = 40  # pixels


def choose_colors(number: int) -> list[tuple[int, int, int]]:
    """Return bright RGB colors; the hues of successive colors are far apart."""
    hues = np.arange(number) * GOLDEN_RATIO % 1
    return [tuple(color[:3]) for color in colormaps['hsv'](hues, bytes=True).tolist()]


def match_instances(truth: Sequence[dict], prediction: Sequence[dict]) -> dict[int, int]:
    """Match predicted masks to those of the ground truth, one to one, by IoU.

    Args:
        truth: Masks as COCO's RLE.
        prediction: Likewise.

    Returns:
        The index of the ground truth by that of the prediction, for matches with an IoU of 0.5 or more.
    """
    if not truth or not prediction:
        return {}
    ious = mask_utils.iou(list(prediction), list(truth), [0] * len(truth))
    matches = zip(*linear_sum_assignment(-ious))
    return {int(i): int(j) for i, j in matches if ious[i, j] >= MATCHED_IOU}


def draw_masks(
    image: np.ndarray, masks: Sequence[dict], colors: Sequence[tuple[int, int, int]], title: str, zoom: int
) -> np.ndarray:
    """Draw masks with their outlines on an enlarged image, below a title.

    Args:
        image: ``(h, w, 3)`` uint8 in RGB.
        masks: COCO's RLE.
        colors: RGB from 0 to 255, one for each mask.
        title: One line of text.
        zoom: Factor by which the image is enlarged.

    Returns:
        The picture ``(40 + zoom * h, zoom * w, 3)`` uint8 in RGB.
    """
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    visualizer = Visualizer(image=cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))
    if masks:
        bitmaps = [mask_utils.decode(mask) for mask in masks]
        bitmaps = np.stack([cv2.resize(bitmap, size, interpolation=cv2.INTER_NEAREST) for bitmap in bitmaps])
        # One call for all masks, because each call draws everything before it again.
        visualizer.draw_binary_masks(bitmaps.astype(bool), colors=list(colors), alphas=0.35)
        outlines = [
            (polygon, color) for bitmap, color in zip(bitmaps, colors) for polygon in bitmap_to_polygon(bitmap)[0]
        ]
        polygons, edge_colors = (list(part) for part in zip(*outlines))
        visualizer.draw_polygons(polygons, edge_colors=edge_colors, line_widths=2)
    bar = np.zeros((TITLE_HEIGHT, size[0], 3), np.uint8)
    cv2.putText(bar, title, (10, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2, cv2.LINE_AA)
    return np.vstack([bar, visualizer.get_image()])


def draw_side_by_side(
    image: np.ndarray, truth: Sequence[dict], prediction: Sequence[dict], titles: tuple[str, str], zoom: int = 4
) -> np.ndarray:
    """Draw ground truth on the left and predictions on the right.

    A prediction has the color of the ground truth that it matches, otherwise a color of its own.

    Args:
        image: ``(h, w, 3)`` uint8 in RGB.
        truth: Masks as COCO's RLE.
        prediction: Likewise.
        titles: One line of text for each side.
        zoom: Factor by which the image is enlarged.

    Returns:
        The picture ``(40 + zoom * h, 2 * zoom * w, 3)`` uint8 in RGB.
    """
    colors = choose_colors(len(truth) + len(prediction))
    matches = match_instances(truth, prediction)
    predicted_colors = [colors[matches.get(i, len(truth) + i)] for i in range(len(prediction))]
    left = draw_masks(image, truth, colors[: len(truth)], titles[0], zoom)
    return np.hstack([left, draw_masks(image, prediction, predicted_colors, titles[1], zoom)])


def draw_dataset(
    dataset: COCO, predictions: Sequence[dict], image_dir: Path, out_dir: Path, score_thr: float
) -> list[Path]:
    """Write a picture of ground truth and predictions for each image.

    Args:
        dataset: The annotations.
        predictions: The content of the file that `tools/test.py --out NAME.pkl` wrote, one dict for each image.
        image_dir: Folder of the images.
        out_dir: Folder of the pictures.
        score_thr: Draw predictions with a higher score.

    Returns:
        Files of the pictures.
    """
    files = []
    for sample in predictions:
        file_name = dataset.imgs[sample['img_id']]['file_name']
        truth = [dataset.annToRLE(annotation) for annotation in dataset.imgToAnns[sample['img_id']]]
        found = sample['pred_instances']
        masks = [mask for mask, score in zip(found['masks'], found['scores']) if score > score_thr]
        titles = f'ground truth: {len(truth)} instances', f'prediction: {len(masks)} with a score above {score_thr}'
        image = mmcv.imread(image_dir / file_name, channel_order='rgb')
        files.append(out_dir / Path(file_name).with_suffix('.png'))
        mmcv.imwrite(mmcv.rgb2bgr(draw_side_by_side(image, truth, masks, titles)), str(files[-1]))
    return files
