"""The nuclei as a dataset, and what `make demo` does around training and test."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from demo import run_demo
from embedmask_mmdet.datasets import nuclei
from embedmask_mmdet.inference import side_by_side

ROOT = Path(__file__).resolve().parents[1]
CUT = 60  # two thirds of the width below


@pytest.fixture(scope='module')
def labels():
    """Ellipses that touch and overlap, two across the cut; the last leaves 8 pixels on its right side."""
    labels = np.zeros((80, 90), np.uint16)
    for label, centre in enumerate([(10, 10), (18, 14), (40, 30), (58, 20), (75, 40), (20, 60), (80, 70)], start=7):
        cv2.ellipse(labels, centre, (9, 6), 20 * label, 0, 360, label, -1)
    labels[50:58, 50 : CUT + 1] = 300
    return labels


@pytest.fixture(scope='module')
def wheel(labels, tmp_path_factory):
    image = (labels > 0) * 50 + np.arange(labels.size).reshape(labels.shape) % 11
    path = tmp_path_factory.mktemp('wheel') / 'stardist-0-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('stardist-0.dist-info/licenses/LICENSE.txt', 'BSD 3-Clause')
        for name, array in dict(img2d=image, mask2d=labels).items():
            encoded = cv2.imencode('.tif', array.astype(np.uint16))[1]
            archive.writestr(f'stardist/data/images/{name}.tif', encoded.tobytes())
    return path


@pytest.fixture(scope='module')
def dataset(wheel, tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'nuclei'
    nuclei.write_dataset(out, wheel)
    return out


def side(labels, split):
    return labels[:, :CUT] if split == 'train' else labels[:, CUT:]


def tools_run(*args, **env):
    return subprocess.run(
        [sys.executable, 'tools/dataset_converters/nuclei.py', *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize('split', ['train', 'test'])
def test_annotations_are_the_label_image(dataset, labels, split):
    coco = COCO(dataset / 'annotations' / f'{split}.json')
    expected = side(labels, split)
    masks = np.array([coco.annToMask(annotation) for annotation in coco.anns.values()])
    assert (masks == (expected == np.unique(expected)[1:, None, None])).all()
    assert [annotation['area'] for annotation in coco.anns.values()] == masks.sum((1, 2)).tolist()
    assert cv2.imread(str(dataset / 'images' / f'{split}.png')).shape[:2] == expected.shape


def test_what_is_left_of_a_nucleus_at_the_cut_counts_unless_it_is_tiny(dataset):
    crowd = {
        split: [a['iscrowd'] for a in COCO(dataset / f'annotations/{split}.json').anns.values()]
        for split in ('train', 'test')
    }
    assert sum(crowd['train']) == 0
    assert crowd['test'].count(1) == 1
    assert len(crowd['train']) + len(crowd['test']) == 8 + 2


@pytest.mark.parametrize('split', ['train', 'test'])
def test_mmdetection_reads_the_masks_exactly(dataset, labels, split):
    config = Config.fromfile(ROOT / run_demo.CONFIG)
    init_default_scope('mmdet')
    expected = side(labels, split)
    loaded = DATASETS.build(
        {
            **config.test_dataloader.dataset,
            'data_root': str(dataset),
            'ann_file': f'annotations/{split}.json',
            'pipeline': [config.test_pipeline[0], config.test_pipeline[2]],
        }
    )[0]
    assert (loaded['gt_masks'].to_ndarray() == (expected == np.unique(expected)[1:, None, None])).all()
    assert loaded['img'].shape == (*expected.shape, 3)


def test_licence_comes_along(dataset):
    assert (dataset / 'LICENSE.txt').read_text() == 'BSD 3-Clause'


def test_image_is_stretched_to_8_bits():
    image = np.linspace(100, 1100, 1001).reshape(7, 143).astype(np.uint16)
    stretched = nuclei.convert_to_8bit(image, reference=image)
    assert stretched.dtype == np.uint8
    assert stretched.min() == 0 and stretched.max() == 255
    assert abs(int(stretched.flat[500]) - 127.5) < 1
    assert (nuclei.convert_to_8bit(np.full((4, 4), 9, np.uint16), np.full((4, 4), 9, np.uint16)) == 0).all()


def test_existing_dataset_is_left_alone(dataset, tmp_path, capsys):
    (tmp_path / 'mine').write_text('kept')
    nuclei.write_dataset(tmp_path)
    assert 'remove it' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


@pytest.mark.parametrize('content', ['no archive', 'no image in it', 'nothing'])
def test_wrong_wheel_is_named(tmp_path, content):
    wheel = tmp_path / 'wrong.whl'
    if content == 'no archive':
        wheel.write_text('?')
    elif content == 'no image in it':
        zipfile.ZipFile(wheel, 'w').close()
    run = tools_run('--out', tmp_path / 'out', '--wheel', wheel)
    assert run.returncode == 1
    assert run.stderr.startswith(f'ERROR: {wheel} is not the wheel') and 'Traceback' not in run.stderr
    assert not (tmp_path / 'out').exists()


def test_no_network_says_what_to_do(tmp_path):
    offline = dict(PIP_INDEX_URL='http://localhost:9/', PIP_EXTRA_INDEX_URL='', PIP_FIND_LINKS='', PIP_RETRIES='0')
    run = tools_run('--out', tmp_path / 'out', PIP_CONFIG_FILE='/dev/null', **offline)
    assert run.returncode == 1
    assert 'pip download' in run.stderr and '--wheel FILE' in run.stderr and 'Traceback' not in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def truth(dataset):
    return COCO(dataset / 'annotations/test.json')


def rles(coco):
    return [coco.annToRLE(annotation) for annotation in coco.anns.values()]


def draw(truth, dataset, masks, scores, out):
    """Draw and return the left and the right half of the picture, at the size of the image."""
    sample = dict(img_id=1, pred_instances=dict(masks=masks, scores=scores))
    (path,) = side_by_side.draw_dataset(truth, [sample], dataset / 'images', out, run_demo.SCORE_THR)
    assert path == out / 'test.png'
    picture = cv2.imread(str(path))[side_by_side.TITLE_HEIGHT :].astype(int)
    return np.split(picture[2::4, 2::4], 2, axis=1)


def test_pictures_show_truth_beside_prediction(truth, dataset, labels, tmp_path):
    masks = rles(truth)
    scores = np.linspace(0.9, 0.1, len(masks))
    left, right = draw(truth, dataset, masks, scores, tmp_path)
    assert left.shape == right.shape == (*side(labels, 'test').shape, 3)
    left, right = (np.ptp(half, axis=2) > 30 for half in (left, right))
    assert left[side(labels, 'test') > 0].all()
    shown = mask_utils.decode([mask for mask, score in zip(masks, scores) if score > run_demo.SCORE_THR])
    assert right[shown.any(axis=2)].all()
    hidden = (side(labels, 'test') > 0) & ~cv2.dilate(shown.max(axis=2), np.ones((3, 3))).astype(bool)
    assert hidden.any() and not right[hidden].any()


def test_an_instance_has_the_same_color_on_both_sides(truth, dataset, labels, tmp_path):
    masks = rles(truth)
    left, right = draw(truth, dataset, masks[::-1], np.full(len(masks), 0.9), tmp_path)
    inside = side(labels, 'test') > 0
    assert inside.any() and (left[inside] == right[inside]).all()


def strip(start, stop):
    mask = np.zeros((10, 40), np.uint8)
    mask[:, start:stop] = 1
    return mask_utils.encode(np.asfortranarray(mask))


def test_predictions_match_the_truth_one_to_one_from_an_iou_of_half():
    truth = [strip(0, 10), strip(20, 30)]
    prediction = [strip(35, 40), strip(20, 29), strip(20, 30), strip(0, 5), strip(6, 10)]
    assert side_by_side.match_instances(truth, prediction) == {2: 1, 3: 0}
    assert side_by_side.match_instances(truth, [strip(6, 10)]) == {}


def test_unmatched_predictions_have_colors_of_their_own():
    image = np.zeros((10, 40, 3), np.uint8)
    truth, prediction = [strip(0, 10), strip(20, 30)], [strip(32, 38), strip(0, 10)]
    picture = side_by_side.draw_side_by_side(image, truth, prediction, ('', ''), zoom=4)[40 + 20]
    first, second, unmatched, matched = (tuple(picture[4 * x]) for x in (5, 25, 40 + 35, 40 + 5))
    assert matched == first
    assert len({first, second, unmatched, (0, 0, 0)}) == 4


def test_picture_without_detections(truth, dataset, tmp_path):
    _, right = draw(truth, dataset, [], np.zeros(0), tmp_path)
    assert np.ptp(right, axis=2).max() < 10


def test_colors_differ():
    assert len(set(side_by_side.choose_colors(40))) == 40


def test_training_is_repeated_unless_it_was_finished_with_this_config(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text('train_cfg = dict(max_iters=20)')

    checkpoint = run_demo.find_final_checkpoint(tmp_path, config)
    assert checkpoint == tmp_path / 'iter_20.pth'

    def trained(iterations):
        (tmp_path / f'iter_{iterations}.pth').touch()
        (tmp_path / 'last_checkpoint').write_text(f'elsewhere/iter_{iterations}.pth')
        return run_demo.is_trained(checkpoint, config)

    assert not run_demo.is_trained(checkpoint, config)
    assert not trained(10)
    os.utime(config, (0, 0))
    assert trained(20)
    newer = checkpoint.stat().st_mtime + 1
    os.utime(config, (newer, newer))
    assert not run_demo.is_trained(checkpoint, config)


def test_failing_stage_ends_the_demo(capfd, tmp_path):
    (tmp_path / 'broken.py').write_text('raise SystemExit("disk full")')
    with pytest.raises(SystemExit, match='ERROR: training failed'):
        run_demo.run_stage('training', str(tmp_path / 'broken.py'))
    assert 'disk full' in capfd.readouterr().err


@pytest.mark.slow
def test_demo_reaches_its_figures_and_does_not_train_twice(tmp_path):
    command = [sys.executable, str(ROOT / 'demo/run_demo.py'), '--work-dir', 'here']
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    ap, ap50 = map(float, re.search(r'^segm  AP (\S+)  AP50 (\S+)$', first, re.M).groups())
    assert ap >= 0.55 and ap50 >= 0.88
    assert (tmp_path / 'here/pictures/test.png').stat().st_size > 100_000

    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert 'training: already done' in second
    assert f'segm  AP {ap:.3f}  AP50 {ap50:.3f}' in second
