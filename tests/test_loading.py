"""Checkpoints are loaded where they belong, refused where they do not, and those of version 0.1 still work."""

import copy
import itertools
from unittest import mock

import pytest
import torch
from mmdet.apis import DetInferencer, init_detector
from mmdet.registry import MODELS
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMaskBBoxHead
from embedmask_mmdet.models.weights import MEANINGS, META_KEY, describe_weights
from tests.builders import tiny_detector, tiny_model_cfg
from tests.training.runs import largest_difference, short_run_cfg, train

OLD_NAME, NEW_NAME = 'bbox_head.position.scale', 'frame.scale'
# Another value for each setting that changes what weights mean.
CHANGES = {
    'frame.type': 'EmbedMaskBoxFrame',
    'frame.coord_scale': 16,
    'frame.prior_margin': 1.0,
    'bbox_head.strides': [8, 16, 32, 64, 100],
    'bbox_head.norm_on_bbox': False,
    'bbox_head.margin_reduce_factor': 4,
    'mask_head.stride': 4,
}
_run_number = itertools.count()


def train_once(data_root, work_dir, **changes):
    """Train for one epoch, so that the optimizer has momentum; return the config and the checkpoint."""
    cfg = short_run_cfg(data_root, work_dir)
    cfg.merge_from_dict(changes)
    train(cfg)
    return cfg, work_dir / 'epoch_1.pth'


@pytest.fixture(scope='module')
def trained(data_root, tmp_path_factory):
    return train_once(data_root, tmp_path_factory.mktemp('trained'))


def load(cfg, path, how):
    """Load a checkpoint as a runner does for ``train``, ``resume`` or ``test``, before it starts."""
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.resume = str(path), how == 'resume'
    cfg.experiment_name = f'loading{next(_run_number)}'
    runner = Runner.from_cfg(cfg)
    if how != 'test':
        runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.call_hook('before_run')
    runner.load_or_resume()
    return runner


def change(cfg, setting):
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict({f'model.{setting}': CHANGES[setting]})
    return cfg


def edit_checkpoint(path, target, edit):
    """Write what an edit leaves of a checkpoint's weights, which keep their metadata."""
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint['state_dict'])
    torch.save(checkpoint, target)
    return target


def test_every_setting_that_changes_the_meaning_is_tried():
    assert CHANGES.keys() == {'frame.type', *MEANINGS}


def test_meaning_survives_saving_and_the_safe_unpickler(trained):
    cfg, path = trained
    metadata = torch.load(path, weights_only=True)['state_dict']._metadata
    assert metadata[''][META_KEY] == describe_weights(MODELS.build(cfg.model))


@pytest.mark.parametrize('how', ['test', 'resume'])
@pytest.mark.parametrize('setting', CHANGES)
def test_weights_with_another_meaning_are_refused(trained, setting, how):
    cfg, path = trained
    with pytest.raises(InputError, match=rf'epoch_1\.pth was trained with model\.{setting}='):
        load(change(cfg, setting), path, how)


@pytest.mark.parametrize('setting', CHANGES)
def test_training_may_start_from_weights_with_another_meaning(trained, setting):
    cfg, path = trained
    runner = load(change(cfg, setting), path, 'train')
    expected = torch.load(path, weights_only=True)['state_dict']
    if setting == 'bbox_head.norm_on_bbox':  # distances in cells, or their logarithms
        names = [name for name in expected if not name.startswith(('bbox_head.conv_reg', 'bbox_head.scales'))]
        expected = {name: expected[name] for name in names}
    assert largest_difference(expected, runner.model.state_dict()) == 0
    # What is trained from now on means what this config says.
    assert runner.model.state_dict()._metadata[''][META_KEY][setting] == CHANGES[setting]


@pytest.mark.parametrize('setting', CHANGES)
def test_inference_with_another_meaning_is_refused(trained, setting):
    cfg, path = trained
    with pytest.raises(InputError, match=rf'the checkpoint was trained with model\.{setting}='):
        init_detector(change(cfg, setting), str(path), device='cpu')


@pytest.mark.parametrize('how', ['test', 'resume'])
@pytest.mark.parametrize(
    'name, message',
    [
        ('bbox_head.conv_embed.weight', r'it lacks 1 of \d+ weights of the heads \(bbox_head.conv_embed.weight\)'),
        ('frame.scale', r'it lacks 1 of \d+ weights of the heads \(frame.scale\)'),
        ('backbone.conv1.weight', r'it lacks 1 weights \(backbone.conv1.weight\)'),
    ],
)
def test_incomplete_weights_are_refused(trained, tmp_path, name, message, how):
    cfg, path = trained
    path = edit_checkpoint(path, tmp_path / 'part.pth', lambda weights: weights.pop(name))
    with pytest.raises(InputError, match=rf'part\.pth is not a checkpoint .*: {message}'):
        load(cfg, path, how)


def test_training_may_start_from_a_part_of_the_weights(trained, tmp_path):
    cfg, path = trained

    def keep_backbone(weights):
        for name in [name for name in weights if not name.startswith('backbone.')]:
            del weights[name]

    path = edit_checkpoint(path, tmp_path / 'part.pth', keep_backbone)
    runner = load(cfg, path, 'train')
    weights = torch.load(path, weights_only=True)['state_dict']
    assert largest_difference(weights, runner.model.state_dict()) == 0


@pytest.mark.parametrize('how', ['test', 'train', 'resume'])
def test_weights_of_another_model_are_refused(trained, tmp_path, how):
    torch.save(dict(state_dict={'roi_head.bbox_head.fc_cls.weight': torch.zeros(2, 2)}), tmp_path / 'mask_rcnn.pth')
    with pytest.raises(InputError, match=r'mask_rcnn\.pth is not a checkpoint of this model.*roi_head'):
        load(trained[0], tmp_path / 'mask_rcnn.pth', how)


def test_weights_saved_by_several_processes_load(trained, tmp_path):
    def add_prefix(weights):
        for name in list(weights):
            weights[f'module.{name}'] = weights.pop(name)

    cfg, path = trained
    wrapped = edit_checkpoint(path, tmp_path / 'wrapped.pth', add_prefix)
    runner = load(cfg, wrapped, 'test')
    assert largest_difference(torch.load(path, weights_only=True)['state_dict'], runner.model.state_dict()) == 0


def with_num_classes(cfg, num_classes):
    cfg = copy.deepcopy(cfg)
    cfg.model.bbox_head.num_classes = num_classes
    return cfg


OTHER_CLASSES = r'was trained on 2 classes: disc, rectangle; this config has 3, so its bbox_head\.conv_cls\.weight'


@pytest.mark.parametrize('how', ['test', 'resume'])
def test_other_number_of_classes_is_refused(trained, how):
    cfg, path = trained
    with pytest.raises(InputError, match=rf'epoch_1\.pth {OTHER_CLASSES}'):
        load(with_num_classes(cfg, 3), path, how)


def test_other_number_of_classes_is_refused_by_inference(trained):
    cfg, path = trained
    with pytest.raises(InputError, match=rf'the checkpoint {OTHER_CLASSES}.*num_classes=2 '):
        init_detector(with_num_classes(cfg, 3), str(path), device='cpu')
    with pytest.raises(InputError, match=rf'the checkpoint {OTHER_CLASSES}'):
        DetInferencer(with_num_classes(cfg, 3), str(path), device='cpu')
    model = MODELS.build(with_num_classes(cfg, 3).model)
    weights = torch.load(path, weights_only=True)['state_dict']
    with pytest.raises(InputError, match='the checkpoint was trained on 2 classes; this config has 3'):
        model.load_state_dict(weights, strict=False)


def test_training_may_start_from_other_classes(trained):
    cfg, path = trained
    runner = load(with_num_classes(cfg, 3), path, 'train')
    expected = torch.load(path, weights_only=True)['state_dict']
    expected = {name: weight for name, weight in expected.items() if 'conv_cls' not in name}
    assert largest_difference(expected, runner.model.state_dict()) == 0


def test_weights_of_another_size_are_refused(trained):
    cfg, path = trained
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.stem_channels = 4
    message = r'this config: backbone\.conv1\.weight has the size \(8, 3, 7, 7\), here \(4, 3, 7, 7\)'
    with pytest.raises(InputError, match=message):
        load(cfg, path, 'test')


@pytest.mark.parametrize('part', ['bbox_head', 'mask_head'])
def test_embeddings_of_another_size_are_refused(part):
    cfg = tiny_model_cfg()
    cfg.bbox_head.embed_dim = cfg.mask_head.embed_dim = 8
    state_dict = tiny_detector(cfg).state_dict()
    other = 'mask_head' if part == 'bbox_head' else 'bbox_head'
    del state_dict[f'{other}.conv_embed.weight']
    with pytest.raises(InputError, match=rf'the checkpoint has embed_dim=8 \({part}.conv_embed.weight\), .* has 16'):
        tiny_detector().load_state_dict(state_dict, strict=False)


def test_weights_of_another_model_are_refused_without_a_runner():
    model = tiny_detector()
    with pytest.raises(InputError, match='the checkpoint is not a checkpoint of this model: it lacks'):
        model.load_state_dict({'backbone.conv1.weight': model.backbone.conv1.weight}, strict=False)


def test_head_of_a_user_may_be_tested(trained):
    class OwnHead(EmbedMaskBBoxHead):
        pass

    cfg, path = trained
    cfg = copy.deepcopy(cfg)
    cfg.model.bbox_head.type = 'OwnHead'
    with mock.patch.dict(MODELS.module_dict, OwnHead=OwnHead):
        assert isinstance(load(cfg, path, 'test').model.bbox_head, OwnHead)


def rename_as_in_version_0_1(weights, prefix=''):
    """Rename the scale of the frame and bring it to where it was, the first parameter of the box head's own."""
    items = dict(weights)
    scale = items.pop(prefix + NEW_NAME)
    weights.clear()
    for name, weight in items.items():
        if name == f'{prefix}bbox_head.conv_embed.weight':
            weights[prefix + OLD_NAME] = scale
        weights[name] = weight
    assert prefix + OLD_NAME in weights


def write_version_0_1(model, path, target):
    """Write what version 0.1 would have saved: other names, another order of parameters, no meaning."""
    checkpoint = torch.load(path, weights_only=True)
    weights = checkpoint['state_dict']
    rename_as_in_version_0_1(weights)
    weights._metadata[''].pop(META_KEY)
    optimizer = checkpoint['optimizer']
    is_single = len(optimizer['param_groups']) == 1
    now = [name for name, parameter in model.named_parameters() if is_single or parameter.requires_grad]
    then = [NEW_NAME if name == OLD_NAME else name for name in weights]
    then = [name for name in then if name in now]
    assert then != now and sorted(then) == sorted(now)
    before = [now.index(name) for name in then]
    state = optimizer['state']
    optimizer['state'] = {new: state[old] for new, old in enumerate(before) if old in state}
    if not is_single:
        groups = [optimizer['param_groups'][old] for old in before]
        optimizer['param_groups'] = [dict(group, params=[i]) for i, group in enumerate(groups)]
    if 'ema_state_dict' in checkpoint:
        rename_as_in_version_0_1(checkpoint['ema_state_dict'], 'module.')
    torch.save(checkpoint, target)
    return target


def describe_optimizer(runner):
    """List the momentum, the learning rate and the decay of each parameter that is trained, by name."""
    names = {parameter: name for name, parameter in runner.model.named_parameters()}
    optimizer = runner.optim_wrapper.optimizer
    return {
        names[parameter]: (optimizer.state[parameter]['momentum_buffer'], group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
        if parameter.requires_grad
    }


@pytest.fixture(scope='module', params=['group for each parameter', 'single group'])
def versions(request, data_root, tmp_path_factory):
    """A config, and its checkpoint as it is and as version 0.1 would have written it."""
    work_dir = tmp_path_factory.mktemp('versions')
    is_single = request.param == 'single group'
    cfg, path = train_once(data_root, work_dir, **({'optim_wrapper.paramwise_cfg': None} if is_single else {}))
    model = MODELS.build(cfg.model)
    # Frozen parameters have no group of their own.
    assert not all(parameter.requires_grad for parameter in model.parameters())
    return cfg, path, write_version_0_1(model, path, work_dir / 'version_0_1.pth')


def test_checkpoint_of_version_0_1_loads(versions):
    cfg, path, old_path = versions
    expected = torch.load(path, weights_only=True)['state_dict']
    for model in (
        load(cfg, old_path, 'test').model,
        load(cfg, old_path, 'train').model,
        init_detector(copy.deepcopy(cfg), str(old_path), device='cpu'),
    ):
        assert largest_difference(expected, model.state_dict()) == 0
    assert expected[NEW_NAME] != 1


def test_checkpoint_of_version_0_1_resumes_with_the_momentum_of_each_parameter(versions):
    cfg, path, old_path = versions
    expected, actual = (describe_optimizer(load(cfg, each, 'resume')) for each in (path, old_path))
    assert actual.keys() == expected.keys()
    for name, (momentum, *rates) in expected.items():
        assert torch.equal(actual[name][0], momentum), name
        assert list(actual[name][1:]) == rates, name
    assert expected[NEW_NAME][0].any()


def test_checkpoint_of_version_0_1_resumes_exactly(versions, tmp_path):
    cfg, *paths = versions
    weights = []
    for i, path in enumerate(paths):
        longer = copy.deepcopy(cfg)
        longer.train_cfg.max_epochs, longer.load_from, longer.work_dir = 2, str(path), str(tmp_path / str(i))
        weights.append(train(longer, resume=True).model.state_dict())
    assert largest_difference(*weights) == 0
    assert largest_difference(weights[0], torch.load(paths[0], weights_only=True)['state_dict']) > 0


def test_averaged_weights_of_version_0_1_resume(data_root, tmp_path):
    cfg = short_run_cfg(data_root, tmp_path)
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.5))
    train(cfg)
    path = tmp_path / 'epoch_1.pth'
    old_path = write_version_0_1(MODELS.build(cfg.model), path, tmp_path / 'version_0_1.pth')
    states = []
    for each in (path, old_path):
        runner = load(cfg, each, 'resume')
        average = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
        states.append((runner.model.state_dict(), average.state_dict()))
    for expected, actual in zip(*states):
        assert largest_difference(expected, actual) == 0
    assert largest_difference(*states[0]) > 0


def test_weights_alone_load_without_a_runner(trained, tmp_path):
    cfg, path = trained
    weights = torch.load(path, weights_only=True)['state_dict']
    torch.save(weights, tmp_path / 'weights.pth')
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(tmp_path / 'weights.pth'))
    assert largest_difference(weights, model.state_dict()) == 0
    with pytest.raises(InputError, match='was trained with'):
        load_checkpoint(MODELS.build(change(cfg, 'frame.type').model), str(tmp_path / 'weights.pth'))
