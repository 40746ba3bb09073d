"""Training starts from weights of MMDetection's detectors: each level of the neck gets the weights of its own level."""

import copy
import functools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from embedmask_mmdet.engine.design import Design, get_classes, read_assignments, read_design
from embedmask_mmdet.engine.loading import start_from
from embedmask_mmdet.engine.transfer import find_shift, transfer_weights
from tests.builders import CLASSES, COCO_CONFIG, PLUS_CONFIG, tiny_model_cfg
from tests.test_loading import load
from tests.training.runs import short_run_cfg

FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco'
OLD_FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco'
CONDINST = 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance'
MASK_RCNN = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'
DENSE_HEAD = ('backbone.', 'neck.', 'bbox_head.cls_convs.', 'bbox_head.reg_convs.')
BOXES = ('bbox_head.conv_reg.', 'bbox_head.conv_centerness.', 'bbox_head.scales.')


def shrink(model):
    """Make the model of a config of MMDetection as small as the tiny detector."""
    model.backbone.update(depth=18, base_channels=8, stem_channels=8, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    head = dict(in_channels=32, feat_channels=32)
    if 'roi_head' in model:
        model.rpn_head.update(head)
        model.roi_head.bbox_head.update(in_channels=32, fc_out_channels=16)
        model.roi_head.mask_head.update(in_channels=32, conv_out_channels=32)
    else:
        model.bbox_head.update(head, stacked_convs=1, norm_cfg=dict(type='GN', num_groups=8))
    if 'mask_feature_head' in model.get('mask_head', {}):
        model.mask_head.mask_feature_head.update(head)
    return model


@functools.cache
def shrink_config(name):
    """Return the model and the text of a shrunk config of MMDetection's zoo."""
    cfg = get_config(f'mmdet::{name}.py')
    shrink(cfg.model)
    return cfg.model, cfg.pretty_text


@functools.cache
def target_model(name):
    model = tiny_model_cfg(PLUS_CONFIG if name == 'plus' else COCO_CONFIG)
    if name == 'P2':
        model.neck.update(start_level=0, num_outs=6)
        model.mask_head.update(stride=4, mask_scale=1)
    elif name == 'plus':
        model.pixel_branch.in_channels = 8
    model.backbone.update(base_channels=8, stem_channels=8)
    model.neck.in_channels = [8, 16, 32, 64]
    return model


def write_checkpoint(path, name, edit=lambda checkpoint: None):
    """Write random weights of a shrunk config of MMDetection's zoo with its text; return the weights."""
    init_default_scope('mmdet')
    model, text = shrink_config(name)
    weights = MODELS.build(model).state_dict()
    torch.manual_seed(0)
    for weight in weights.values():
        if weight.is_floating_point():
            weight.normal_()
    checkpoint = dict(state_dict=weights, meta=dict(cfg=text, dataset_meta=dict(classes=('cat', 'dog'))))
    edit(checkpoint)
    torch.save(checkpoint, path)
    return weights


@pytest.fixture(params=['paper', 'plus', 'P2'])
def target(request):
    """Config of a model to train, and the level of its neck that is P3."""
    return copy.deepcopy(target_model(request.param)), int(request.param == 'P2')


def start(model_cfg, path):
    """Take weights to start training from; return those of the model with them, and what was said."""
    said = []
    logger = SimpleNamespace(info=said.append, warning=said.append)
    dataset = SimpleNamespace(metainfo=dict(classes=CLASSES))
    runner = SimpleNamespace(logger=logger, _load_from=str(path), train_dataloader=SimpleNamespace(dataset=dataset))
    model, checkpoint = MODELS.build(model_cfg), torch.load(path, weights_only=True)
    start_from(runner, model, checkpoint)
    model.load_state_dict(checkpoint['state_dict'])
    return model.state_dict(), '\n'.join(said)


def report_of(log):
    """Return the lines about the weights."""
    lines = log.splitlines()
    (first,) = (i for i, line in enumerate(lines) if 'weights of this model' in line)
    return [lines[first], *(line for line in lines[first + 1 : first + 6] if line.startswith('  '))]


def move(name, shift):
    """Return the name that a weight has in a neck that begins `shift` levels earlier."""
    match = re.fullmatch(r'(neck\.\w+\.)(\d+)(\..*)', name)
    return f'{match[1]}{int(match[2]) + shift}{match[3]}' if match else name


@pytest.mark.parametrize('has_meta', [True, False], ids=['meta', 'no meta'])
@pytest.mark.parametrize('name', [FCOS, CONDINST], ids=['FCOS', 'CondInst'])
def test_each_level_gets_its_own_weights(target, tmp_path, name, has_meta):
    model, shift = target
    weights = write_checkpoint(tmp_path / 'coco.pth', name, lambda each: None if has_meta else each.pop('meta'))
    after, log = start(model, tmp_path / 'coco.pth')
    taken = [each for each in weights if each.startswith((*DENSE_HEAD, *BOXES))]
    assert len({each for each in taken if each.startswith('neck.')}) == 16
    for each in taken:
        assert torch.equal(after[move(each, shift)], weights[each]), each
    report = report_of(log)
    assert 'backbone 120, neck 16, towers 8, boxes and centerness 9' in report[1]
    assert re.search(rf'begin anew: {"neck 4, " if shift else ""}classes 2, embeddings and margins 12', report[2])
    assert 'do not fit: classes 2 (80 classes, 2 here)' in report[3]
    assert len(report) == (5 if name == CONDINST else 4)
    assert ('(of' in report[0]) == has_meta and ('does not say how it was trained' in report[0]) != has_meta


def test_runner_starts_from_fcos(target, data_root, tmp_path):
    cfg = short_run_cfg(data_root, tmp_path / 'work')
    cfg.model, shift = target
    weights = write_checkpoint(tmp_path / 'coco.pth', FCOS)
    runner = load(cfg, tmp_path / 'coco.pth', 'train')
    name = 'neck.lateral_convs.0.conv.weight'
    assert torch.equal(runner.model.state_dict()[move(name, shift)], weights[name])
    log = Path(runner.work_dir, runner.timestamp, f'{runner.timestamp}.log').read_text()
    assert len(report_of(log)) == 4
    # What MMEngine says of weights that do not fit.
    assert 'mismatch' not in log and 'unexpected key' not in log and 'missing keys' not in log


def test_neck_that_begins_earlier_gives_what_is_there(target, tmp_path):
    model, shift = target
    weights = write_checkpoint(tmp_path / 'coco.pth', MASK_RCNN)
    after, log = start(model, tmp_path / 'coco.pth')
    # Its finest level is P2. Its coarsest is pooled and has no weights.
    shared = [name for name in weights if name.startswith('neck.') and move(name, shift - 1) in after]
    assert len(shared) == (16 if shift else 12)
    for name in shared:
        assert torch.equal(after[move(name, shift - 1)], weights[name]), name
    assert f'taken: backbone 120, neck {len(shared)}\n' in log


def test_levels_follow_from_strides_if_the_backbone_is_another(target, tmp_path):
    model, shift = target
    weights = write_checkpoint(tmp_path / 'coco.pth', FCOS)
    model.backbone.update(base_channels=16, stem_channels=16)
    model.neck.in_channels = [16, 32, 64, 128]
    after, log = start(model, tmp_path / 'coco.pth')
    for i in range(5):
        name = f'neck.fpn_convs.{i}.conv.weight'
        assert torch.equal(after[move(name, shift)], weights[name])
    assert 'taken: neck 10, towers 8, boxes and centerness 9\n' in log
    assert 'do not fit: backbone 120, neck 6, classes 2 (80 classes, 2 here; another backbone; other sizes)' in log


def test_convolution_that_halves_the_resolution_is_not_taken_for_one_of_the_backbone():
    own = {f'neck.lateral_convs.{i}.conv.weight': torch.zeros(4, 8 * 2**i, 1, 1) for i in range(2)}
    own |= {f'neck.fpn_convs.{i}.conv.weight': torch.zeros(4, 4, 3, 3) for i in range(4)}
    weights = own | {'neck.lateral_convs.2.conv.weight': torch.zeros(4, 32, 1, 1)}
    transfer = transfer_weights(weights, own, Design(), Design())
    assert transfer.unfit == {'neck.fpn_convs.2.conv.weight': 'computes another level'}
    assert transfer.unused == ['neck.lateral_convs.2.conv.weight']


def test_boxes_in_other_units_begin_anew(target, tmp_path):
    model, _ = target
    weights = write_checkpoint(tmp_path / 'coco.pth', OLD_FCOS)
    after, log = start(model, tmp_path / 'coco.pth')
    for name in ('conv_reg.weight', 'conv_centerness.weight', 'scales.0.scale'):
        assert not torch.equal(after[f'bbox_head.{name}'], weights[f'bbox_head.{name}']), name
    assert torch.equal(after['bbox_head.cls_convs.0.conv.weight'], weights['bbox_head.cls_convs.0.conv.weight'])
    assert '(80 classes, 2 here; centerness_on_reg=False, True here; norm_on_bbox=False, True here)' in log


@pytest.mark.parametrize(('name', 'differs'), [(FCOS, False), (CONDINST, True)], ids=['FCOS', 'CondInst'])
def test_other_normalization_is_reported_once(target, tmp_path, name, differs):
    model, _ = target
    write_checkpoint(tmp_path / 'coco.pth', name)
    # The tiny detector has the other style.
    model.backbone.style = 'caffe'
    log = start(model, tmp_path / 'coco.pth')[1]
    assert log.count('add --cfg-options') == differs
    if differs:
        assert "'model.backbone.style=pytorch' 'model.data_preprocessor.mean=[123.675,116.28,103.53]'" in log
        assert "'model.data_preprocessor.bgr_to_rgb=True'" in log


def set_two_classes(classes):
    def edit(checkpoint):
        for name in ('weight', 'bias'):
            checkpoint['state_dict'][f'bbox_head.conv_cls.{name}'] = torch.ones(
                2, *checkpoint['state_dict'][f'bbox_head.conv_cls.{name}'].shape[1:]
            )
        checkpoint['meta'] = dict(dataset_meta=dict(classes=classes)) if classes else {}

    return edit


@pytest.mark.parametrize(('classes', 'is_taken'), [(CLASSES, True), (None, True), (('cat', 'dog'), False)])
def test_class_layer_is_taken_for_equal_classes(target, tmp_path, classes, is_taken):
    model, _ = target
    write_checkpoint(tmp_path / 'coco.pth', FCOS, set_two_classes(classes))
    after, log = start(model, tmp_path / 'coco.pth')
    assert bool((after['bbox_head.conv_cls.weight'] == 1).all()) == is_taken
    assert ('classes cat, dog, here disc, rectangle' in log) != is_taken


def make_old(checkpoint):
    """Name weights as MMDetection 1 did, and describe the training as MMDetection 2 did."""
    weights = checkpoint['state_dict']
    for part in ('cls', 'reg', 'centerness'):
        for kind in ('weight', 'bias'):
            weights[f'bbox_head.fcos_{part}.{kind}'] = weights.pop(f'bbox_head.conv_{part}.{kind}')
    text = (
        'img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)\n'
        "model = dict(type='FCOS', bbox_head=dict(type='FCOSHead', norm_on_bbox=True, centerness_on_reg=True))\n"
    )
    checkpoint['meta'] = dict(config=text, CLASSES=CLASSES)


def test_names_and_texts_of_older_versions_are_read(target, tmp_path):
    model, _ = target
    weights = write_checkpoint(tmp_path / 'coco.pth', FCOS, make_old)
    after, log = start(model, tmp_path / 'coco.pth')
    assert torch.equal(after['bbox_head.conv_reg.weight'], weights['bbox_head.fcos_reg.weight'])
    assert 'boxes and centerness 9' in log and "'model.data_preprocessor.bgr_to_rgb=True'" in log


def test_text_of_a_config_is_read_and_not_run(tmp_path):
    path = str(tmp_path / 'ran')
    text = f"open({path!r}, 'w')\nmodel = dict(type='FCOS', a=open({path!r}, 'w'), b=dict(c=(-1, 2.5)), d=inf)"
    found = read_assignments(text, ['model'])
    assert found == dict(model=dict(type='FCOS', a=None, b=dict(c=(-1, 2.5)), d=None))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('text', ['model = [', 'model = 1', 'model = dict(**{1: 2})', '', 'x' * 10])
def test_other_texts_say_nothing(text):
    design = read_design(dict(meta=dict(cfg=text), state_dict={}))
    assert (design.detector, design.neck_stride, design.head, design.inputs) == (None, None, {}, {})


def test_classes_are_found_under_all_names():
    for meta in (dict(dataset_meta=dict(classes=['a'])), dict(CLASSES=('a',)), dict(CLASSES='a')):
        assert get_classes(meta) == ('a',)
    assert get_classes({}) == ()


@pytest.mark.parametrize(
    ('channels', 'own', 'shift'),
    [
        ([16, 32, 64], [8, 16, 32, 64], 1),
        ([8, 16, 32, 64], [16, 32, 64], -1),
        ([8, 16, 32], [8, 16, 32], 0),
        ([8, 16, 32], [8, 16, 32, 64], 0),
        ([64, 128], [8, 16, 32, 64], None),
        ([8, 8], [8, 8, 8], None),
        ([], [8, 16], None),
    ],
)
def test_place_of_the_levels(channels, own, shift):
    assert find_shift(channels, own) == shift


def test_checkpoint_says_where_the_neck_begins(target):
    model_cfg, shift = target
    for weights in (MODELS.build(model_cfg).state_dict(), dict(state_dict=MODELS.build(model_cfg).state_dict())):
        assert read_design(weights).neck_stride == (4 if shift else 8)
