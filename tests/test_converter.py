"""The authors' checkpoints convert, the detector then finds what their network finds, and the way back is exact."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.dataset import Compose

from embedmask_mmdet.converters import authors as converter
from tests import authors_network
from tests.builders import ROOT, draw_shapes
from tests.reference import DATA, draw_state_dict, relative_error
from tools.model_converters import embedmask_to_mmdet

COCO8 = ROOT.parent / 'shared' / 'data' / 'coco8'
TOOL = ROOT / 'tools' / 'model_converters' / 'embedmask_to_mmdet.py'
MARGIN = 'rpn.head.proposal_margin_pred'


def draw_network(depth):
    """Draw the authors' weights, so that scores are spread and masks are neither empty nor their boxes."""
    weights = draw_state_dict(f'upstream_state_dict_r{depth}')
    weights['rpn.head.cls_logits.weight'] *= 3
    weights['rpn.head.cls_logits.bias'] -= 2
    weights[f'{MARGIN}.bias'] -= 0.25
    return weights


def blank_network(depth=50):
    """The authors' names and shapes, of which a file takes next to no space."""
    shapes = json.loads((DATA / f'upstream_state_dict_r{depth}.json').read_text())
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


def build(depth=50):
    return converter.build_on_meta(Config.fromfile(converter.CONFIGS[depth]))


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


@pytest.fixture(scope='module')
def weights():
    return draw_network(50)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, weights):
    """The authors' file as training on several GPUs with an old torch wrote it, and what the tool made of it."""
    folder = tmp_path_factory.mktemp('converted')
    momentum = {'state': {0: {'momentum_buffer': torch.ones(3)}}, 'param_groups': [{'lr': 0.01, 'params': [0]}]}
    checkpoint = dict(
        model={f'module.{name}': weight for name, weight in weights.items()},
        optimizer=momentum,
        scheduler=dict(milestones=(60000, 80000), last_epoch=90000),
        iteration=90000,
    )
    torch.save(checkpoint, folder / 'theirs.pth', _use_new_zipfile_serialization=False)
    command = [sys.executable, str(TOOL), 'theirs.pth', 'made/ours.pth']
    subprocess.run(command, cwd=folder, check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope='module')
def ours(folder):
    return torch.load(folder / 'made' / 'ours.pth', weights_only=True)


def convert(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['embedmask_to_mmdet.py', *map(str, args)])
    embedmask_to_mmdet.main()


def error_of(monkeypatch, *args):
    with pytest.raises(SystemExit) as exit_info:
        convert(monkeypatch, *args)
    message = exit_info.value.code
    assert message.startswith('embedmask_to_mmdet.py: error: ') and '\n' not in message
    return message


@pytest.fixture(scope='module')
def detector():
    cfg = Config.fromfile(converter.CONFIGS[50])
    cfg.model.backbone.init_cfg = None
    return converter.MODELS.build(cfg.model).eval()


def test_every_weight_goes_into_the_config(detector, ours):
    detector.load_state_dict(ours['state_dict'], strict=True)


def test_features_are_the_authors_to_float64(detector, weights):
    weights = {name: weight.double() for name, weight in weights.items()}
    detector.double().load_state_dict(converter.to_mmdet(weights, detector))
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        levels = zip(detector.extract_feat(image), authors_network.AuthorsNetwork(weights).pyramid(image))
        for ours, theirs in levels:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * theirs.abs().max().item())


def test_only_weights_and_what_inference_looks_for_are_written(folder, ours):
    assert ours.keys() == {'meta', 'state_dict'}
    assert ours['meta']['dataset_meta']['classes'][::79] == ('person', 'toothbrush')
    assert Config.fromstring(ours['meta']['cfg'], '.py').model.type == 'EmbedMask'
    assert [path.name for path in (folder / 'made').iterdir()] == ['ours.pth']


def test_round_trip_is_exact(monkeypatch, folder, weights):
    convert(monkeypatch, '--reverse', folder / 'made' / 'ours.pth', folder / 'back.pth')
    back = torch.load(folder / 'back.pth', weights_only=True)
    assert_equal(back['model'], weights)
    assert (folder / 'back.pth').stat().st_size < 1.01 * sum(4 * weight.numel() for weight in weights.values()) + 2**20


def test_round_trip_from_our_side_is_exact(ours):
    model = build()
    assert_equal(converter.to_mmdet(converter.to_authors(ours['state_dict'], model), model), ours['state_dict'])


@pytest.mark.parametrize('variance', [1.0, 1e-3, 7e-6, 12345.678])
def test_variances_come_back_exactly(variance):
    variance = torch.tensor([variance])
    assert torch.equal(converter.shift(converter.shift(variance, -1e-5), 1e-5), variance)


def test_r101_is_recognized(monkeypatch, tmp_path):
    torch.save(dict(model=blank_network(101)), tmp_path / 'theirs.pth')
    convert(monkeypatch, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    state_dict = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    expected = build(101).state_dict()
    assert {name: w.shape for name, w in state_dict.items()} == {name: w.shape for name, w in expected.items()}
    (tmp_path / 'ours.pth').unlink()


def test_bare_weights_of_another_config_convert(monkeypatch, tmp_path):
    blank = blank_network()
    for leaf in ('weight', 'bias'):
        blank[f'rpn.head.cls_logits.{leaf}'] = blank[f'rpn.head.cls_logits.{leaf}'][:2]
    torch.save(blank, tmp_path / 'theirs.pth')
    error = error_of(monkeypatch, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert 'rpn.head.cls_logits.weight of shape (2, 256, 3, 3) instead of (80, 256, 3, 3)' in error
    assert '--config' in error
    options = dict(model=dict(bbox_head=dict(num_classes=2)))
    metainfo = dict(dataset=dict(metainfo=dict(classes=('cat', 'dog'))))
    cfg = dict(_base_=str(converter.CONFIGS[50]), val_dataloader=metainfo, **options)
    (tmp_path / 'two.py').write_text('\n'.join(f'{name} = {value!r}' for name, value in cfg.items()))
    convert(monkeypatch, tmp_path / 'theirs.pth', tmp_path / 'ours.pth', '--config', tmp_path / 'two.py')
    ours = torch.load(tmp_path / 'ours.pth', weights_only=True)
    assert ours['meta']['dataset_meta']['classes'] == ('cat', 'dog')
    assert len(ours['state_dict']['bbox_head.conv_cls.bias']) == 2
    (tmp_path / 'ours.pth').unlink()


def replace(name, *shape):
    return lambda blank: {**blank, name: torch.zeros(shape)}


def remove(*parts):
    return lambda blank: {name: weight for name, weight in blank.items() if not any(part in name for part in parts)}


def old_version(blank):
    margin = {f'{MARGIN}.weight': torch.zeros(1, 256, 3, 3), f'{MARGIN}.bias': torch.zeros(1)}
    embed = {
        f'rpn.head.{branch}_other_embed_pred.weight': torch.zeros(6, 256, 3, 3) for branch in ('proposal', 'pixel')
    }
    return {**blank, **margin, **embed}


def oldest_version(blank):
    return {**remove('embed_pred', 'scale')(blank), f'{MARGIN}.weight': torch.zeros(1, 4, 1, 1)}


P6 = 'backbone.fpn.top_blocks.p6.bias'
BAD_WEIGHTS = {
    'margins': (
        replace(f'{MARGIN}.weight', 15, 256, 3, 3),
        f'{MARGIN}.weight of shape (15, 256, 3, 3) instead of (16,',
    ),
    'scale': (replace('rpn.head.scales.3.scale', 2), 'rpn.head.scales.3.scale of shape (2,) instead of (1,)'),
    'spatial': (replace('rpn.head.pixel_spatial_embed_pred.bias', 3), 'embed_pred.bias of shape (3,) instead of (2,)'),
    'missing': (remove(P6), f'lacks 1 of 356 weights: {P6}'),
    'unexpected': (replace('extra', 1), 'has 1 unknown weights: extra'),
    'other': (lambda blank: {'fc.weight': torch.zeros(1)}, 'lacks 356 of 356'),
    'old': (old_version, 'is of the older version, with 8 channels and one margin for each instance'),
    'oldest': (oldest_version, 'is of the older version, with 8 channels and one margin for each instance'),
    'FCOS': (remove('embed_pred', 'margin', 'mask_tower', 'position'), 'is one of FCOS'),
    'ours': (lambda blank: {'bbox_head.conv_cls.bias': torch.zeros(80)}, "has MMDetection's names already"),
    'text': (lambda blank: {'a': 'b'}, 'has no weights'),
    'list': (lambda blank: [1, 2], 'has no weights'),
}


@pytest.mark.parametrize('kind', BAD_WEIGHTS)
def test_what_is_wrong_is_named(monkeypatch, tmp_path, kind):
    change, message = BAD_WEIGHTS[kind]
    torch.save(dict(model=change(blank_network())), tmp_path / 'theirs.pth')
    error = error_of(monkeypatch, tmp_path / 'theirs.pth', tmp_path / 'new' / 'ours.pth')
    assert message in error
    assert str(tmp_path / 'theirs.pth') in error
    assert not (tmp_path / 'new').exists()


class Call:
    """Pickles as a call of a function."""

    def __reduce__(self):
        return os.system, ('touch ran',)


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_pickle_is_not_run(monkeypatch, tmp_path, zipped):
    monkeypatch.chdir(tmp_path)
    contents = dict(model=blank_network(), optimizer=Call())
    torch.save(contents, 'theirs.pth', _use_new_zipfile_serialization=zipped)
    assert 'system, which could run code' in error_of(monkeypatch, 'theirs.pth', 'ours.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['theirs.pth']


def test_files_that_are_no_checkpoint_are_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.pth').write_text('epoch 3, AP 0.5\n')
    assert 'text.pth is not a checkpoint' in error_of(monkeypatch, 'text.pth', 'ours.pth')
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps({'a': 1}))
    assert 'plain.pth is not a checkpoint' in error_of(monkeypatch, 'plain.pth', 'ours.pth')


def test_wrong_paths_are_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save(blank_network(), 'theirs.pth')
    before = (tmp_path / 'theirs.pth').read_bytes()
    with pytest.raises(SystemExit, match=r'nowhere.pth does not exist(.|\n)*theirs.pth'):
        convert(monkeypatch, 'nowhere.pth', 'ours.pth')
    assert 'are the same file' in error_of(monkeypatch, 'theirs.pth', tmp_path / 'theirs.pth')
    assert 'is a folder: name the file' in error_of(monkeypatch, 'theirs.pth', tmp_path)
    assert 'theirs.pth/ours.pth cannot be written' in error_of(monkeypatch, 'theirs.pth', 'theirs.pth/ours.pth')
    assert (tmp_path / 'theirs.pth').read_bytes() == before


def test_wrong_direction_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(model=blank_network()), 'theirs.pth')
    assert 'Leave out --reverse' in error_of(monkeypatch, '--reverse', 'theirs.pth', 'ours.pth')


def test_reverse_of_another_network_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={'bbox_head.conv_cls.bias': torch.zeros(80)}), 'ours.pth')
    assert 'lacks' in error_of(monkeypatch, '--reverse', 'ours.pth', 'theirs.pth')


def test_oracle_has_the_authors_head():
    network = authors_network.AuthorsNetwork(draw_state_dict('head_state_dict', prefix='rpn.head.'))
    arrays = np.load(DATA / 'head.npz')
    names = ('cls_score', None, 'centerness', 'proposal_embed', 'proposal_margin')
    for level in range(5):
        outs = network.head(level, torch.from_numpy(arrays[f'feat{level}'][:1]))
        for name, out in zip(names, outs):
            if name is not None:
                expected = arrays[f'train_{name}{level}'][0].reshape(out.shape[1], -1).T
                assert relative_error(out, expected) < 1e-4
        corners = authors_network.locations(
            torch.zeros(arrays[f'feat{level}'].shape[2:]), authors_network.STRIDES[level]
        )
        distances = arrays[f'eval_bbox_pred{level}'][0].reshape(4, -1)
        signs = np.array([-1, -1, 1, 1])[:, None]
        assert relative_error(outs[1].T, corners.repeat(2, 1, 1).flatten(1).numpy() + signs * distances) < 1e-4
    pixel_embed = network.embed(
        'pixel', network.tower('mask', torch.from_numpy(arrays['feat0'])), authors_network.STRIDES[0]
    )
    assert relative_error(pixel_embed, arrays['train_pixel_embed']) < 1e-4


def test_oracle_has_the_authors_masks():
    arrays = np.load(DATA / 'masks.npz')
    pixel_embed, embeds, margins, bboxes = (
        torch.from_numpy(arrays[name]) for name in ('pixel_embed', 'proposal_embed', 'proposal_margin', 'bboxes')
    )
    pixel_embed = torch.nn.functional.interpolate(pixel_embed, scale_factor=2, mode='bilinear')[0]
    img_shape = tuple(arrays['img_shape'].tolist())
    for size in range(3):
        ori_shape = tuple(arrays[f'ori_shape{size}'].tolist())
        expected = np.unpackbits(arrays[f'masks{size}'], axis=-1)[..., : ori_shape[1]]
        masks = [
            authors_network.segment(pixel_embed, *each, img_shape, ori_shape) for each in zip(bboxes, embeds, margins)
        ]
        assert (torch.stack(masks).numpy() != expected).mean() <= 1e-4


def compare(cfg, weights, checkpoint, images):
    """Return the share of the oracle's detections that ours has, and the mean IoU of their masks."""
    model = init_detector(cfg, str(checkpoint), device='cpu')
    pipeline = Compose([step for step in cfg.test_pipeline if step.type != 'EmbedMaskLoadAnnotations'])
    matched, mask_ious = [], []
    for image in images:
        data = pipeline(dict(img_path=str(image), img_id=0))
        theirs = authors_network.detect(weights, data['inputs'], data['data_samples'].ori_shape)
        ours = inference_detector(model, str(image)).pred_instances
        assert len(ours) == len(theirs['scores']) == 100
        same = box_ious(theirs['bboxes'], ours.bboxes) >= 0.9
        same &= theirs['labels'][:, None] == ours.labels
        same &= (theirs['scores'][:, None] - ours.scores).abs() <= 1e-3
        matched.append(same.any(1))
        found = same.float().argmax(1)[matched[-1]]
        mask_ious.append(ious_of(theirs['masks'][matched[-1]], ours.masks[found]))
        # Else there would be nothing to compare.
        assert theirs['scores'].std() > 0.01
        assert theirs['masks'].any(dim=(1, 2)).float().mean() > 0.5
    return torch.cat(matched).float().mean(), torch.cat(mask_ious).mean()


def box_ious(a, b):
    corners = torch.cat([a[:, None, :2].maximum(b[:, :2]), a[:, None, 2:].minimum(b[:, 2:])], -1)
    inner, areas_a, areas_b = ((box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (corners, a[:, None], b))
    return inner / (areas_a + areas_b - inner)


def ious_of(masks, others):
    union = (masks | others).sum((1, 2))
    return torch.where(union > 0, (masks & others).sum((1, 2)) / union, 1.0)


def test_detections_are_the_authors(tmp_path, folder, weights):
    image = tmp_path / 'shapes.png'
    cv2.imwrite(str(image), draw_shapes(np.random.default_rng(0), (180, 240), 8)[0])
    cfg = Config.fromfile(converter.CONFIGS[50])
    cfg.test_pipeline[1].scale = (400, 250)
    cfg.test_dataloader.dataset.pipeline = cfg.test_pipeline
    matched, mask_iou = compare(cfg, weights, folder / 'made' / 'ours.pth', [image])
    assert matched >= 0.97
    assert mask_iou >= 0.998


@pytest.mark.slow
@pytest.mark.skipif(not COCO8.is_dir(), reason='the 8 COCO images are not beside this repository')
@pytest.mark.parametrize('depth, num_images', [(50, 3), (101, 1)])
def test_detections_in_coco_are_the_authors(tmp_path, depth, num_images):
    weights = draw_network(depth)
    torch.save(dict(model=weights), tmp_path / 'theirs.pth')
    config = converter.convert(tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    images = sorted((COCO8 / 'val2017').glob('*.jpg'))[:num_images]
    matched, mask_iou = compare(Config.fromfile(config), weights, tmp_path / 'ours.pth', images)
    for path in tmp_path.glob('*.pth'):
        path.unlink()
    assert matched >= 0.97
    assert mask_iou >= 0.998
