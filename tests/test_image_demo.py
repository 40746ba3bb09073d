"""The demo as a user calls it: images of every kind, folders, videos, broken files, and paths that are wrong."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import InferencerLoader
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from demo import image_demo
from embedmask_mmdet import videos
from embedmask_mmdet.analysis.thresholds import ScoreThreshold, save_thresholds
from embedmask_mmdet.inference import EmbedMaskInferencer, drawing
from embedmask_mmdet.inference.inferencer import set_short_side
from embedmask_mmdet.media import SkippedFiles
from embedmask_mmdet.models.weights import CLASS_WEIGHT
from tests.builders import CLASSES, COCO_CONFIG, tiny_cfg, tiny_detector

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, a checkpoint whose detections are noise, and an image."""
    folder = tmp_path_factory.mktemp('demo')
    cfg = tiny_cfg(folder, folder / 'unused')
    cfg.model.test_cfg.update(score_thr=0.0, max_per_img=10)
    cfg.dump(folder / 'tiny.py')
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=tiny_detector().state_dict(), meta=meta), folder / 'tiny.pth')
    cv2.imwrite(str(folder / 'image.png'), picture())
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Run the demo in an empty folder of its own; return what it printed, or raise what ended it."""

    def run(*args):
        monkeypatch.chdir(tmp_path)
        args = [folder / arg if str(arg).startswith('tiny.') else arg for arg in args]
        monkeypatch.setattr(sys, 'argv', ['image_demo.py', *map(str, args)])
        image_demo.main()
        return capsys.readouterr().out

    return run


def picture(height=HEIGHT, width=WIDTH, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)


def written(out_dir):
    return sorted(str(path.relative_to(out_dir)) for path in out_dir.rglob('*') if path.is_file())


def difference(first, second):
    return np.abs(cv2.imread(str(first)).astype(int) - cv2.imread(str(second))).max(axis=2)


# What is drawn


@pytest.fixture
def inferencer(folder):
    inferencer = EmbedMaskInferencer(folder / 'tiny.py', folder / 'tiny.pth', device='cpu')
    inferencer.thresholds = [0.5, 0.7]
    inferencer.visualizer.dataset_meta['palette'] = [(255, 0, 0), (0, 0, 255)]
    return inferencer


def draw(inferencer, image, sample):
    """Draw detections and return the picture in BGR."""
    (picture,) = inferencer.visualize([image], [sample], return_vis=True)
    return picture[..., ::-1]


def two_squares(size, scores):
    """Two instances, one of each class: the middle of the left and of the right half."""
    height, width = size
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    boxes = [[width * (0.15 + 0.5 * i), height * 0.3, width * (0.35 + 0.5 * i), height * 0.7] for i in range(2)]
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    found = InstanceData(bboxes=torch.tensor(boxes), masks=masks, scores=torch.tensor(scores), labels=torch.arange(2))
    return DetDataSample(pred_instances=found, metainfo=dict(ori_shape=size)), masks.numpy()


@pytest.mark.parametrize('size', [(240, 320), (96, 129), (1201, 1603)])
def test_masks_are_tinted_and_the_rest_is_left_alone(inferencer, size):
    image = np.full((*size, 3), 128, np.uint8)
    sample, masks = two_squares(size, [0.9, 0.9])
    drawn = draw(inferencer, image, sample).astype(int)
    assert drawn.shape == image.shape
    for mask, channel in zip(masks, (2, 0)):  # red and blue, in BGR
        middle = cv2.erode(mask.astype(np.uint8), np.ones((3, 3)), iterations=size[0] // 12).astype(bool)
        middle[: size[0] // 2] = False  # where the name stands
        assert middle.any() and (drawn[middle][:, channel] - drawn[middle][:, 1] > 30).mean() > 0.95
    near = cv2.dilate(masks.any(axis=0).astype(np.uint8), np.ones((3, 3)), iterations=size[0] // 20).astype(bool)
    near[int(size[0] * 0.3) : int(size[0] * 0.6)] = True
    assert (drawn[~near] == 128).all()


def test_fonts_grow_with_the_picture(inferencer):
    def name_height(size):
        sample, _ = two_squares(size, [0.9, 0.0])
        sample.pred_instances = sample.pred_instances[:1]
        picture = draw(inferencer, np.full((*size, 3), 128, np.uint8), sample)
        return (picture.max(axis=2) < 60).sum(axis=0).max()  # the black behind a name

    assert name_height((1600, 1600)) > 2 * name_height((640, 640))


@pytest.mark.parametrize('scores, drawn', [((0.5, 0.7), 2), ((0.6, 0.6), 1), ((0.4, 0.8), 1), ((0.4, 0.6), 0)])
def test_each_class_has_its_threshold(inferencer, monkeypatch, scores, drawn):
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    sample, masks = two_squares((HEIGHT, WIDTH), list(scores))
    monkeypatch.setattr(inferencer.model, 'test_step', lambda data: [sample])
    outputs = inferencer(image, return_vis=True)
    assert len(outputs['predictions'][0]['scores']) == drawn
    shown = [(outputs['visualization'][0][mask] != 128).any() for mask in masks]
    assert shown == [scores[0] >= 0.5, scores[1] >= 0.7]


def test_low_thresholds_are_not_raised_by_mmdetections_default(inferencer, monkeypatch):
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    sample, masks = two_squares((HEIGHT, WIDTH), [0.02, 0.02])
    monkeypatch.setattr(inferencer.model, 'test_step', lambda data: [sample])
    inferencer.thresholds = [0.01, 0.03]
    (picture,) = inferencer(image, return_vis=True)['visualization']
    assert [(picture[mask] != 128).any() for mask in masks] == [True, False]


def test_min_image_size_is_the_short_side_of_what_is_detected_in():
    init_default_scope('mmdet')
    cfg = Config.fromfile(COCO_CONFIG)
    for size, short_side, resized in [
        ((480, 640), None, (800, 1067)),
        ((480, 640), 800, (800, 1067)),
        ((480, 640), 400, (400, 533)),
        ((640, 480), 1600, (2133, 1600)),
        ((100, 400), 800, (333, 1333)),
    ]:
        steps = copy.deepcopy(cfg.test_pipeline)
        if short_side is not None:
            set_short_side(steps, short_side)
        sample = Compose([InferencerLoader(), *steps[1:]])(np.zeros((*size, 3), np.uint8))['data_samples']
        assert sample.img_shape == resized and sample.ori_shape == size


# Runs


def test_a_picture_of_each_image_beside_nothing_else(folder, run, tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    for i, name in enumerate(('a.png', 'b.JPG', 'c.bmp')):
        cv2.imwrite(str(images / name), picture(HEIGHT + i, WIDTH - i, i))
    (images / 'notes.txt').write_text('no image')
    out = run('images', 'tiny.py', 'tiny.pth', '--score-thr', '0.0', '--out-dir', 'out', '--batch-size', '2')
    assert written(tmp_path / 'out') == ['a.png', 'b.JPG', 'c.bmp']
    for name in written(tmp_path / 'out'):
        assert (difference(images / name, tmp_path / 'out' / name) > 30).mean() > 0.01
    assert '3 of 3 drawn into out, with 30 instances' in out


def test_picture_without_detections_is_the_image(folder, run, tmp_path):
    out = run(folder / 'image.png', 'tiny.py', 'tiny.pth', '--score-thr', '2')
    assert difference(folder / 'image.png', tmp_path / 'outputs/image.png').max() <= 1
    assert 'with 0 instances' in out


def write_kinds(images):
    """Write images of every kind; return what size their pictures should have."""
    image = picture()
    images.mkdir()
    cv2.imwrite(str(images / 'grey.png'), image[..., 0])
    cv2.imwrite(str(images / 'grey16.tif'), image[..., 0].astype(np.uint16) * 257)
    cv2.imwrite(str(images / 'rgb16.png'), image.astype(np.uint16) * 257)
    cv2.imwrite(str(images / 'rgb16.tif'), image.astype(np.uint16) * 257)
    cv2.imwrite(str(images / 'alpha.png'), np.dstack([image, image[..., 0]]))
    cv2.imwrite(str(images / 'grey.pgm'), image[..., 0])
    Image.fromarray(image).convert('CMYK').save(images / 'cmyk.jpg')
    Image.fromarray(image).convert('P').save(images / 'palette.png')
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(image).save(images / 'turned.jpg', exif=exif)
    cv2.imwrite(str(images / 'one_pixel.png'), image[:1, :1])
    sizes = {path.name: (HEIGHT, WIDTH) for path in images.iterdir()}
    return {**sizes, 'turned.jpg': (WIDTH, HEIGHT), 'one_pixel.png': (1, 1)}


def test_images_of_every_kind(run, tmp_path):
    sizes = write_kinds(tmp_path / 'images')
    run('images', 'tiny.py', 'tiny.pth', '--batch-size', '4')
    sizes['grey.pgm.png'] = sizes.pop('grey.pgm')
    drawn = {name: cv2.imread(str(tmp_path / 'outputs' / name)).shape[:2] for name in written(tmp_path / 'outputs')}
    assert drawn == sizes


def write_broken(images):
    images.mkdir()
    for suffix in ('.jpg', '.png', '.webp'):
        encoded = cv2.imencode(suffix, picture())[1].tobytes()
        (images / f'cut{suffix}').write_bytes(encoded[: len(encoded) * 2 // 3])
    (images / 'empty.jpg').touch()
    (images / 'text.png').write_text('no image')
    (images / 'text.mp4').write_text('no video')
    (images / 'empty.avi').touch()
    (images / 'folder.jpg').mkdir()
    return sorted(path.name for path in images.iterdir())


def test_broken_files_are_named_and_the_rest_is_done(folder, run, tmp_path, capsys):
    broken = write_broken(tmp_path / 'images')
    for name in ('a.png', 'z.png'):
        shutil.copy(folder / 'image.png', tmp_path / 'images' / name)
    with pytest.raises(SystemExit) as end:
        run('images', 'missing.jpg', 'tiny.py', 'tiny.pth', '--batch-size', '3')
    captured = capsys.readouterr()
    assert written(tmp_path / 'outputs') == ['a.png', 'z.png']
    for name in [*(f'images/{name}' for name in broken), 'missing.jpg']:
        assert f'skipped {name}: ' in captured.err
    assert '2 of 11 drawn' in captured.out
    assert end.value.code.startswith('9 skipped: ')


def test_image_that_cannot_be_resized_is_skipped(folder, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'strip.png'), picture(1, 5000))  # COCO's config makes its short side 0.27 pixels
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.test_dataloader.dataset.pipeline = Config.fromfile(COCO_CONFIG).test_pipeline
    skipped = SkippedFiles()
    drawer = drawing.FileDrawer(EmbedMaskInferencer(cfg, folder / 'tiny.pth', 'cpu'), 1, skipped)
    drawer.draw([tmp_path / 'strip.png'], [tmp_path / 'out.png'])
    assert skipped == [tmp_path / 'strip.png'] and 'skipped' in capsys.readouterr().err


def test_images_of_one_name_keep_their_folders(folder, run, tmp_path):
    for name in ('a', 'b/c'):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(folder / 'image.png', tmp_path / name / 'image.png')
    run('a', 'b/c/image.png', './a/image.png', 'tiny.py', 'tiny.pth')
    assert written(tmp_path / 'outputs') == ['a/image.png', 'b/c/image.png']


@pytest.fixture
def video(tmp_path):
    path = tmp_path / 'video.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 12.5, (WIDTH, HEIGHT))
    for i in range(7):
        writer.write(picture(seed=i))
    writer.release()
    return path


def frames_of(path):
    reader = cv2.VideoCapture(str(path))
    return list(videos.read_frames(reader)), reader.get(cv2.CAP_PROP_FPS)


def test_video_keeps_frames_size_and_rate(run, video, tmp_path):
    shutil.copy(video, tmp_path / 'same.mp4')  # told by its content
    run('video.avi', 'same.mp4', 'tiny.py', 'tiny.pth', '--batch-size', '3', '--score-thr', '0')
    assert written(tmp_path / 'outputs') == ['same.mp4', 'video.avi.mp4']
    frames, rate = frames_of(tmp_path / 'outputs/video.avi.mp4')
    assert len(frames) == 7 and rate == 12.5
    for i, frame in enumerate(frames):
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert (np.abs(frame.astype(int) - picture(seed=i)).max(axis=2) > 60).mean() > 0.01


def test_cut_video_is_drawn_as_far_as_it_goes(monkeypatch, run, video, tmp_path, capsys):
    read_frames = videos.read_frames
    monkeypatch.setattr(videos, 'read_frames', lambda video: list(read_frames(video))[:4])
    with pytest.raises(SystemExit):
        run('video.avi', 'tiny.py', 'tiny.pth')
    assert 'skipped video.avi: only 4 of 7 frames can be read' in capsys.readouterr().err
    assert len(frames_of(tmp_path / 'outputs/video.avi.mp4')[0]) == 4


def thresholds(disc, rectangle):
    return dict(zip(CLASSES, (ScoreThreshold(score, None, None, None, 0) for score in (disc, rectangle))))


def test_thresholds_beside_the_checkpoint_are_used(folder, run, tmp_path):
    shutil.copy(folder / 'tiny.pth', tmp_path / 'own.pth')
    beside = tmp_path / 'own.thresholds.json'
    arguments = (folder / 'image.png', 'tiny.py', 'own.pth')
    assert 'a score of 0.3 or more' in run(*arguments)
    save_thresholds(beside, thresholds(0.0, 0.0))
    out = run(*arguments)
    assert 'Score thresholds for each class: own.thresholds.json\n' in out
    assert 'with 10 instances' in out
    os.utime(beside, (0, 0))
    assert 'own.thresholds.json (older than the checkpoint)' in run(*arguments)
    assert 'with 0 instances' in run(*arguments, '--score-thr', '0.999')
    save_thresholds(tmp_path / 'high.json', thresholds(0.999, 0.999))
    assert 'with 0 instances' in run(*arguments, '--thresholds', 'high.json')


def test_run_by_hand_from_another_folder(folder, tmp_path):
    command = [sys.executable, ROOT / 'demo/image_demo.py', '--out-dir', 'out', folder / 'image.png']
    result = subprocess.run(
        [*command, folder / 'tiny.py', folder / 'tiny.pth'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert written(tmp_path) == ['out/image.png']
    assert 'Images' in result.stderr and '100%' in result.stderr


# Errors


def other_checkpoint(folder, path, **changes):
    checkpoint = torch.load(folder / 'tiny.pth', weights_only=True)
    torch.save({**checkpoint, **changes}, path)


@pytest.mark.parametrize(
    'args, message',
    [
        (['other.py', 'tiny.pth'], 'the config other.py does not exist'),
        (['tiny.py', 'other.pth'], 'the checkpoint other.pth does not exist'),
        (['tiny.py', 'cut.pth'], 'cut.pth'),
        (['tiny.py', 'fewer.pth'], 'fewer.pth is not a checkpoint of'),
        (['tiny.py', 'layer.pth'], 'layer.pth was trained on 3 classes; this config has 2'),
        (['tiny.py', 'classes.pth'], 'classes.pth has 3 classes (a, b, c), but the model of'),
        (['tiny.py', 'tiny.pth', '--out-dir', 'file'], 'file: File exists'),
        (['tiny.py', 'tiny.pth', '--out-dir', '.'], 'image.png would be overwritten by its picture'),
        (['tiny.py', 'tiny.pth', '--device', 'cuda:99'], '--device cuda:99 cannot be used'),
        (['tiny.py', 'tiny.pth', '--device', 'gpu'], '--device gpu cannot be used'),
        (['tiny.py', 'tiny.pth', '--min-image-size', '800'], 'has no Resize'),
        (['tiny.py', 'tiny.pth', '--thresholds', 'none.json'], 'none.json cannot be read: No such file'),
        (['tiny.py', 'tiny.pth', '--thresholds', 'others.json'], 'others.json is about other classes'),
    ],
)
def test_errors_are_one_line(folder, run, tmp_path, args, message):
    shutil.copy(folder / 'image.png', tmp_path / 'image.png')
    (tmp_path / 'file').touch()
    (tmp_path / 'cut.pth').write_bytes((folder / 'tiny.pth').read_bytes()[:1000])
    weights = dict(list(tiny_detector().state_dict().items())[3:])
    other_checkpoint(folder, tmp_path / 'fewer.pth', state_dict=weights)
    other_checkpoint(folder, tmp_path / 'layer.pth', state_dict={CLASS_WEIGHT: torch.zeros(3, 32, 3, 3)})
    other_checkpoint(folder, tmp_path / 'classes.pth', meta=dict(dataset_meta=dict(classes=('a', 'b', 'c'))))
    save_thresholds(tmp_path / 'others.json', dict(cat=ScoreThreshold(0.5, None, None, None, 0)))
    with pytest.raises(SystemExit) as end:
        run('image.png', *args)
    assert message in end.value.code and end.value.code.startswith('image_demo.py: error: ')


@pytest.mark.parametrize('args', [[], ['a.png', 'b.py'], ['a', 'b', 'c', '--batch-size', '0']])
def test_wrong_usage(run, args, capsys):
    with pytest.raises(SystemExit) as end:
        run(*args)
    assert end.value.code == 2 and 'usage: image_demo.py' in capsys.readouterr().err


def test_empty_folder(run, tmp_path, capsys):
    (tmp_path / 'images').mkdir()
    with pytest.raises(SystemExit, match='nothing to draw'):
        run('images', 'tiny.py', 'tiny.pth')
    assert 'skipped images: there are no images and no videos' in capsys.readouterr().err
