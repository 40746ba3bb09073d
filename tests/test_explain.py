"""Explanations: their numbers, their pictures and pages, the command, and the hook."""

import dataclasses
import math
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmdet.registry import VISBACKENDS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.visualization import LocalVisBackend
from torch.nn import functional

from embedmask_mmdet import ops
from embedmask_mmdet.cli import explain as command
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.explain import explain_image, explanation, keep_embeddings, panels, values
from embedmask_mmdet.explain.values import NUM_SPATIAL
from embedmask_mmdet.models import EmbedMaskBoxFrame, EmbedMaskLocationFrame, EmbedMaskScaledBoxFrame
from tests.builders import (
    CLASSES,
    COCO_CONFIG,
    PLUS_CONFIG,
    ROOT,
    build_responsive_detector,
    responsive_model_cfg,
    tiny_cfg,
)
from tests.scripts import run_script
from tests.training.runs import train

HEIGHT, WIDTH = 72, 100


def make_image(seed=0):
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(blocks, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def build_model(config, **test_cfg):
    """Build a model that detects something, with all that MMDetection's ``init_detector`` adds to it."""
    init_default_scope('mmdet')
    model = build_responsive_detector(config, **test_cfg)
    model.cfg = Config.fromfile(COCO_CONFIG)
    (resize,) = [step for step in model.cfg.test_dataloader.dataset.pipeline if step.type == 'Resize']
    resize.scale = (256, 192)
    model.dataset_meta = dict(classes=CLASSES)
    with torch.no_grad():
        model.frame.scale.fill_(1.3)
    return model


@pytest.fixture(scope='module', params=[COCO_CONFIG, PLUS_CONFIG], ids=['paper', 'plus'])
def model(request):
    return build_model(request.param)


@pytest.fixture(scope='module')
def detected(model):
    """What the model computes for the image, with all embeddings."""
    with keep_embeddings(model):
        return explanation.inference_detector(model, make_image())


@pytest.fixture(scope='module')
def explained(model):
    return explain_image(model, make_image(), score_thr=0.0, max_detections=2)


# Numbers


def spatial_prob(frame, detection, points):
    """Compute the probability of points ``(K, 2)`` that look like a detection."""
    embed, margin = (torch.from_numpy(array)[None] for array in (detection.proposal_embed, detection.proposal_margin))
    pixels = embed[0, :, None].repeat(1, len(points))
    pixels[:NUM_SPATIAL] = frame.embed_points(torch.as_tensor(points, dtype=torch.float32)).t()
    return ops.embedding_log_prob(pixels[:, None].contiguous(), embed, margin).exp().flatten().detach().numpy()


def around(ellipse, factor):
    """Return points around the center of an ellipse, on its border if the factor is 1."""
    angles = np.linspace(0, 2 * np.pi, 17)
    return ellipse.center + factor * np.array(ellipse.radii) * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_border_of_the_ellipse_has_the_threshold(model, explained):
    thr = model.mask_head.mask_thr
    assert len(explained.detections) == 2
    for detection in explained.detections:
        ellipse = detection.ellipse
        assert spatial_prob(model.frame, detection, around(ellipse, 1)) == pytest.approx(thr, abs=1e-3)
        assert spatial_prob(model.frame, detection, around(ellipse, 0)) == pytest.approx(1, abs=1e-4)
        assert (spatial_prob(model.frame, detection, around(ellipse, 1.1)) < thr - 0.02).all()


@pytest.mark.parametrize(
    'frame, radii',
    [(EmbedMaskLocationFrame, (32, 32)), (EmbedMaskBoxFrame, (20, 12)), (EmbedMaskScaledBoxFrame, (20, 12))],
)
def test_ellipse_of_the_first_margin(frame, radii):
    """It has a probability of 0.5 at 2 units of embedding from the location, or else on the sides of the box."""
    frame = frame(coord_scale=16)
    results = values.InstanceData(
        points=torch.tensor([[50.0, 40.0]]),
        bboxes=torch.tensor([[30.0, 30.0, 70.0, 54.0]]),
        proposal_embed=torch.cat([frame.embed_points(torch.tensor([[50.0, 40.0]])), torch.ones(1, 3)], dim=1).detach(),
        proposal_margin=torch.full((1, 5), frame.initial_margin),
    )
    results = frame.place(results, min_side=8)
    (ellipse,) = values.find_ellipses(frame, results.proposal_embed, results.proposal_margin, 0.5)
    assert ellipse.radii == pytest.approx(radii)
    assert ellipse.center == pytest.approx((50, 40 if frame.__class__ is EmbedMaskLocationFrame else 42))


def test_pixels_that_point_into_the_ellipse_have_the_threshold(model, detected, explained):
    stride, (height, width) = model.mask_head.stride, explained.pixels.offsets.shape[:2]
    centers = (np.stack(np.mgrid[:height, :width][::-1], axis=-1) + 0.5) * stride
    targets = centers + explained.pixels.offsets
    results = detected.pred_instances[:2]
    arguments = detected.pixel_embed[:2], results.proposal_embed[:, :2], results.proposal_margin[:, :2]
    prob = ops.embedding_log_prob(*(a.contiguous() for a in arguments)).exp()[:, :height, :width].numpy()
    for detection, own_prob in zip(explained.detections, prob):
        distance = (((targets - detection.ellipse.center) / detection.ellipse.radii) ** 2).sum(axis=-1)
        inside = distance <= 1
        assert inside.any() and not inside.all()
        clear = abs(distance - 1) > 1e-3
        assert (inside == (own_prob >= model.mask_head.mask_thr))[clear].all()


def test_probabilities_are_those_of_the_op(model, detected, explained):
    results = detected.pred_instances[:2]
    head, (height, width) = model.mask_head, detected.pixel_embed.shape[1:]
    grid = (height * head.mask_scale, width * head.mask_scale)
    embed = functional.interpolate(detected.pixel_embed[None], grid, mode='bilinear')[0]
    expected = ops.embedding_log_prob(embed, results.proposal_embed, results.proposal_margin).exp().numpy()
    for detection, prob in zip(explained.detections, expected):
        assert (detection.prob == prob).all()
        assert detection.spatial_prob * detection.other_prob == pytest.approx(prob, abs=1e-5)
        assert detection.grid_size == (width * head.stride, height * head.stride) == (256, 192)


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_mask_is_the_models_and_the_probability_above_its_threshold(mask_format):
    model = build_model(COCO_CONFIG, mask_format=mask_format)
    predicted = explanation.inference_detector(model, make_image()).pred_instances
    assert 'points' not in predicted
    for detection in explain_image(model, make_image(), [0, 4, 2]).detections:
        mask = predicted.masks[detection.index].cpu().numpy()
        assert mask.shape == (HEIGHT, WIDTH) and mask.any()
        assert (detection.mask == mask).all()
        assert (detection.mask == (detection.image_prob > model.mask_head.mask_thr)).all()
        assert detection.score == predicted.scores[detection.index]
        assert detection.class_name == CLASSES[predicted.labels[detection.index]]
        in_image = detection.bbox * np.tile([WIDTH / 256, HEIGHT / 184], 2)
        assert in_image == pytest.approx(predicted.bboxes[detection.index].numpy(), abs=0.01)


def test_paper_boxes_contain_their_location(explained):
    for detection in explained.detections:
        # Boxes are clipped to the image, and a location may lie in its padding.
        point = detection.point.clip(max=(256, 184))
        assert (detection.crop_bbox[:2] <= point).all() and (point <= detection.crop_bbox[2:]).all()


def test_offsets_are_input_pixels():
    frame = EmbedMaskLocationFrame(coord_scale=16)
    with torch.no_grad():
        frame.scale.fill_(1.5)
        embed = torch.cat([frame.embed_cells((3, 4), 8), torch.ones(2, 3, 4)])
        embed[:2] += frame.embed_points(torch.tensor([5.0, -2.0]))[:, None, None]
        offsets = values.find_offsets(frame, embed, 8)
    assert offsets.shape == (3, 4, 2)
    assert offsets.numpy() == pytest.approx(np.broadcast_to([5, -2], (3, 4, 2)), abs=1e-4)


def test_colors_are_components_with_a_stable_sign():
    rng = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, 200).reshape(10, 20)
    embed = np.stack([0.3 * ramp, -2 * ramp, *(0.01 * rng.normal(size=(4, 10, 20)))])
    colors = values.color_embedding(embed)
    assert colors.shape == (10, 20, 3) and colors.min() == 0 and colors.max() == 1
    # The channel with the largest part falls, so red falls, too.
    assert np.corrcoef(colors[..., 0].ravel(), -ramp.ravel())[0, 1] > 0.99
    assert values.color_embedding(embed + 7) == pytest.approx(colors, abs=1e-6)


@pytest.mark.parametrize(
    'embed', [np.zeros((0, 4, 5)), np.ones((14, 4, 5)), np.full((2, 4, 5), [[[-np.inf]], [[np.nan]]])]
)
def test_colors_without_anything_to_show_are_gray(embed):
    assert (values.color_embedding(embed) == 0.5).all()


@pytest.mark.parametrize('broken', [np.inf, -np.inf, np.nan])
def test_broken_values_count_as_0_in_colors(broken):
    embed = np.random.default_rng(0).normal(size=(6, 4, 5))
    embed[2, 1, 3] = 0
    expected = values.color_embedding(embed)
    embed[2, 1, 3] = broken
    assert np.array_equal(values.color_embedding(embed), expected)


def test_keep_embed_is_as_before(model):
    with pytest.raises(InputError, match='detection 99 does not exist: the image has 20, counted from 0. Choose'):
        explain_image(model, make_image(), [0, 99])
    assert model.mask_head.keep_embed is False
    with pytest.raises(RuntimeError), keep_embeddings(model):
        raise RuntimeError
    assert model.mask_head.keep_embed is False


def test_other_models_are_refused():
    with pytest.raises(InputError, match='of type Linear has no embeddings. Use a config of EmbedMask'):
        explain_image(torch.nn.Linear(1, 1), make_image())
    with pytest.raises(InputError, match='no cfg, which describes how to prepare images. Make it with init_detector'):
        explain_image(build_responsive_detector(), make_image())


# Pictures


def test_saved_pictures_and_pages(explained, tmp_path):
    explained.save(tmp_path / 'a.png')
    explained.save(tmp_path / 'a.JPG')
    explained.save(tmp_path / 'a.html', title='<image>')
    picture = cv2.imread(str(tmp_path / 'a.png'))
    assert picture.shape[1] == 1200 and picture.shape == cv2.imread(str(tmp_path / 'a.JPG')).shape
    assert (picture[..., ::-1] == explained.draw()).all()
    page = (tmp_path / 'a.html').read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 3
    assert '<title>&lt;image&gt;</title>' in page and not re.search(r'(src|href)="(?!data:|#)', page)
    first = explained.detections[0]
    assert f'Detection 1: {first.class_name}, {first.score:.2f}' in page
    assert f'<td class="name">{first.mask.sum():,}</td>' in page
    assert page.count('<tr>') == 2 * (1 + 8 + 1 + 16)
    with pytest.raises(InputError, match='a.txt cannot be written. Choose a name that ends in .png, .jpg, .html'):
        explained.save(tmp_path / 'a.txt')


def test_nothing_detected(model, tmp_path):
    explained = explain_image(model, make_image(), score_thr=2)
    assert explained.num_detections == 0 and explained.detections == []
    explained.save(tmp_path / 'a.png')
    explained.save(tmp_path / 'a.html')
    assert cv2.imread(str(tmp_path / 'a.png')).shape[1] == 1200
    assert (tmp_path / 'a.html').read_text().count('<img') == 1


def test_model_that_detects_nothing(tmp_path):
    model = build_model(COCO_CONFIG, score_thr=1.0)
    explain_image(model, make_image()).save(tmp_path / 'a.png')
    assert (tmp_path / 'a.png').is_file()


def test_broken_numbers_are_drawn(tmp_path):
    """Early in training anything may happen, and a picture must not end it."""
    model = build_model(COCO_CONFIG)
    with torch.no_grad():
        model.mask_head.conv_embed.bias[:3] = math.nan
        model.bbox_head.conv_margin.bias[0] = -math.inf
    explained = explain_image(model, make_image(), [0])
    assert explained.detections[0].ellipse.radii[0] == math.inf
    assert explained.draw().shape[1] == 1200


@pytest.mark.parametrize('size', [(30, 200), (200, 30), (3000, 2000)])
def test_images_of_all_shapes(size):
    model = build_model(COCO_CONFIG)
    image = cv2.resize(make_image(), size[::-1])
    explained = explain_image(model, image, [0])
    assert explained.detections[0].mask.shape == size
    assert explained.draw().shape[0] < 2500


def test_window_shows_boxes_ellipse_and_location(explained):
    for detection in explained.detections:
        left, top, right, bottom = panels.find_window(detection)
        assert right - left == pytest.approx(bottom - top)
        for box in (detection.bbox, detection.crop_bbox):
            assert left < box[0] and top < box[1] and box[2] < right and box[3] < bottom
        far = dataclasses.replace(detection, ellipse=values.Ellipse((1000.0, 40.0), (5.0, 5.0)))
        assert panels.find_window(far).right > 1005


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_drawn_ellipse_has_the_threshold_on_its_border(model, explained, axes):
    (detection, *_) = explained.detections
    panels.draw_ellipse(axes, detection)
    (drawn,) = axes.patches
    x, y = drawn.get_center()
    corners = [(x + drawn.width / 2, y), (x, y - drawn.height / 2)]
    assert spatial_prob(model.frame, detection, corners) == pytest.approx(model.mask_head.mask_thr, abs=1e-3)


def test_outlines_of_thresholds_are_in_their_places(axes):
    prob = np.repeat([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]], 4, axis=0)
    panels.draw_contours(axes, prob, (60, 40), panels.Window(12, 0, 60, 40))
    drawn = [np.concatenate([path.vertices for path in lines.get_paths()]) for lines in axes.collections]
    assert [line[:, 0].mean() for line in drawn] == pytest.approx([28, 30, 32])
    assert all(line[:, 1].min() == 5 and line[:, 1].max() == 35 for line in drawn)


def test_mask_is_tinted_in_its_place(axes):
    mask = np.zeros((4, 6), bool)
    mask[1, 2:4] = True
    panels.draw_mask(axes, mask, (60, 40), panels.Window(20, 0, 60, 40))
    (drawn,) = axes.images
    assert drawn.get_extent() == [20, 60, 40, 0]
    assert ((drawn.get_array()[..., 3] > 0) == mask[:, 2:]).all()


def test_window_beside_the_image_is_empty(axes):
    panels.show(axes, np.ones((4, 6)), (60, 40), panels.Window(-30, -40, -10, -20))
    assert not axes.images and axes.get_xlim() == (-30, -10) and axes.get_ylim() == (-20, -40)


def test_cut_keeps_places():
    array = np.arange(24).reshape(4, 6)
    part, place = panels.cut(array, (60, 40), panels.Window(15, -5, 32, 12))
    assert (part == array[:2, 1:4]).all() and place == (10, 0, 40, 20)
    part, _ = panels.cut(array, (60, 40), panels.Window(-30, -30, -10, -10))
    assert part.size == 0


# The command


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, its checkpoint, that of another model, and an image."""
    folder = tmp_path_factory.mktemp('explain')
    cfg = tiny_cfg(folder, folder / 'unused')
    cfg.model = responsive_model_cfg()
    cfg.dump(folder / 'tiny.py')
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=build_responsive_detector().state_dict(), meta=meta), folder / 'tiny.pth')
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), meta=meta), folder / 'other.pth')
    cv2.imwrite(str(folder / 'image.png'), make_image())
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; return what it printed."""

    def run(*args, config='tiny.py', checkpoint='tiny.pth'):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['explain.py'])
        command.main([str(folder / config), str(folder / checkpoint), *map(str, args)])
        return capsys.readouterr().out

    return run


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_one_picture_for_each_image(run, folder, tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    for name in ('a.png', 'b.jpg'):
        cv2.imwrite(str(images / name), make_image())
    (images / 'video.mp4').touch()
    out = run('images', '--detections', '1', '--score-thr', '0')
    assert written(tmp_path / 'explained') == ['a.png', 'b.png']
    assert 'written to explained/a.png: 1 of 20 detections\n' in out
    out = run(images / 'a.png', '--format', 'html', '--out-dir', 'pages/a', '--score-thr', '2')
    assert written(tmp_path / 'pages') == ['a/a.html'] and '0 of 0 detections' in out
    assert '<h1>What EmbedMask computes for a.png</h1>' in (tmp_path / 'pages/a/a.html').read_text()


def test_names_that_differ_in_their_suffix_stay_apart(tmp_path):
    outputs = command.name_explanations([Path('in/a.jpg'), Path('in/a.png'), Path('in/b.png')], Path('out'), '.html')
    assert outputs == [Path('out/a.jpg.html'), Path('out/a.png.html'), Path('out/b.png.html')]


def test_broken_images_are_named_and_the_rest_is_done(run, folder, tmp_path, capsys):
    (tmp_path / 'broken.png').write_text('no image')
    with pytest.raises(SystemExit, match='2 skipped: broken.png, missing.png'):
        run('broken.png', 'missing.png', folder / 'image.png', '--detections', '0')
    assert written(tmp_path / 'explained') == ['image.png']
    captured = capsys.readouterr()
    assert 'skipped broken.png: this is not a complete image' in captured.err
    assert 'skipped missing.png: No such file or directory' in captured.err


@pytest.mark.parametrize(
    'args, files, message',
    [
        (['image.png'], dict(config='none.py'), r'none.py does not exist'),
        (['image.png'], dict(checkpoint='none.pth'), r'none.pth does not exist'),
        (['image.png'], dict(checkpoint='other.pth'), r'is not a checkpoint of this model: it lacks'),
        (['image.png', '--out-dir', '.'], {}, r'image.png would be overwritten by its picture: choose another'),
        (['image.png', '--out-dir', 'file'], {}, r'file: File exists'),
        (['video.mp4'], {}, r'there are no images to explain'),
    ],
)
def test_errors_are_one_line(run, folder, tmp_path, args, files, message):
    shutil.copy(folder / 'image.png', tmp_path / 'image.png')
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit) as end:
        run(*args, **files)
    assert re.search(f'^explain.py: error: .*{message}', end.value.code)
    assert '\n' not in end.value.code or 'does not exist' in end.value.code  # lists files that do exist


def test_wrong_number_of_detections(run, capsys):
    with pytest.raises(SystemExit):
        run('image.png', '--detections', '-1')
    assert '--detections must not be negative' in capsys.readouterr().err


def test_tool_is_the_command():
    ran = run_script(ROOT / 'tools/misc/explain.py', ['--help'], ROOT)
    assert ran.code == 0 and '--score-thr' in ran.stdout


# The hook


@VISBACKENDS.register_module(force=True)
class Remember(LocalVisBackend):
    """Keeps what is added, as TensorBoard's backend would get it."""

    images: list = []
    metrics: list = []

    def add_image(self, name, image, step=0, **kwargs):
        super().add_image(name, image, step)
        self.images.append((name, image.shape[1:], image.dtype, step))

    def add_scalars(self, scalar_dict, *args, **kwargs):
        self.metrics += [scalar_dict] if 'coco/segm_mAP' in scalar_dict else []


def train_and_validate(data_root, work_dir, hooks):
    """Train an epoch and validate; return the run and its metrics."""
    cfg = tiny_cfg(data_root, work_dir)
    cfg.model = responsive_model_cfg()
    cfg.merge_from_dict({'randomness': dict(seed=0), 'val_dataloader.batch_size': 2})
    # Visualizers are kept by name for the whole process.
    cfg.visualizer.update(name=str(work_dir), vis_backends=[dict(type='Remember')])
    cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
    Remember.images.clear()
    Remember.metrics.clear()
    runner = train(cfg)
    (metrics,) = Remember.metrics
    return runner, {name: value for name, value in metrics.items() if name.startswith('coco/')}


def test_hook_adds_pictures_and_changes_nothing_else(data_root, tmp_path):
    hook = dict(type='EmbedMaskExplainHook', num_images=3, num_detections=1, score_thr=0.0)
    runner, metrics = train_and_validate(data_root, tmp_path / 'with', [hook])
    assert Remember.images == [(f'explained_{i}', (1200, 3), np.uint8, 2) for i in range(3)]
    pictures = {path.name: cv2.imread(str(path)) for path in (tmp_path / 'with').rglob('explained_*.png')}
    assert sorted(pictures) == [f'explained_{i}_2.png' for i in range(3)]
    assert not (pictures['explained_0_2.png'] == pictures['explained_2_2.png']).all()
    assert runner.model.mask_head.keep_embed is False
    assert train_and_validate(data_root, tmp_path / 'without', [])[1] == metrics
    assert not Remember.images
