"""The configs say what algorithm and schedule say, and what they inherit is MMDetection's FCOS."""

import re
import subprocess
import sys

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner

from tests.builders import COCO_CONFIG, ROOT, batch, compute_losses, tiny_detector, tiny_model_cfg, write_tiny_coco
from tests.training.test_distributed import launch, wait

CONFIGS = sorted((ROOT / 'configs').glob('embedmask*.py'))
README = ROOT / 'configs' / 'README.md'
CAFFE = dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
PYTORCH = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def table_rows() -> dict[str, list[str]]:
    """Read the cells of the rows of configs/README.md that begin with a link, by the file that is linked."""
    rows = re.findall(r'^\| \[[^]]*\]\(([^)]*)\) \|(.*)\|$', README.read_text(), re.MULTILINE)
    return {file: [cell.strip() for cell in cells.split('|')] for file, cells in rows}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds_with_the_parameters_that_the_readme_gives(path):
    cfg = Config.fromfile(path)
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    assert type(model).__name__ == 'EmbedMask'
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert table_rows()[path.name][1] == f'{millions:.1f}'


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_input_is_what_the_pretrained_weights_saw(path):
    cfg = Config.fromfile(path).model
    if cfg.backbone.init_cfg is None:
        return
    checkpoint = cfg.backbone.init_cfg.checkpoint
    # MMEngine would import torchvision for its addresses.
    assert not checkpoint.startswith('torchvision')
    seen = CAFFE if checkpoint.endswith('_caffe') else PYTORCH
    assert {name: cfg.data_preprocessor[name] for name in seen} == seen
    if 'style' in cfg.backbone:
        assert cfg.backbone.style == ('caffe' if seen is CAFFE else 'pytorch')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_time_augmentation_is_about_the_size_that_is_tested(path):
    cfg = Config.fromfile(path)
    tested = [step.scale for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize']
    scales = [resize.scale for resize in cfg.tta_pipeline[1].transforms[0]]
    assert tested == sorted(scales)[1:2]
    assert len(scales) == 3
    for name in ('max_per_img', 'nms'):
        assert cfg.tta_model.tta_cfg[name] == cfg.model.test_cfg[name]


OWN_DATA = ROOT / 'configs' / 'embedmask_own-data.py'


def change_own_data(folder, **lines):
    """Read the template for one's own data with other values in some of its lines."""
    text = OWN_DATA.read_text().replace("'./embedmask-plus", f"'{OWN_DATA.parent}/embedmask-plus")
    for name, value in lines.items():
        text, count = re.subn(rf'^{name} = .*$', f'{name} = {value!r}', text, flags=re.MULTILINE)
        assert count == 1
    (folder / 'own.py').write_text(text)
    return Config.fromfile(folder / 'own.py')


@pytest.mark.parametrize('finest_stride', [4, 8])
@pytest.mark.parametrize('size', ['small', 'r50'])
def test_both_sizes_of_own_data_train(tmp_path, size, finest_stride):
    model_cfg = change_own_data(tmp_path, size=size, finest_stride=finest_stride).model
    model_cfg.backbone.init_cfg = None
    model = tiny_detector(model_cfg)
    assert type(model.frame).__name__ == 'EmbedMaskScaledBoxFrame'
    assert (model.backbone.depth, model.bbox_head.feat_channels) == ((18, 64) if size == 'small' else (50, 256))
    assert model.backbone.frozen_stages == (-1 if size == 'small' else 1)
    assert model.bbox_head.strides[0] == finest_stride and model.mask_head.stride == 4
    assert all(high == 2 * low for low, high in model.bbox_head.regress_ranges[1:-1])
    assert model.bbox_head.regress_ranges[0][1] == 8 * finest_stride
    data = batch([(64, 96)], [2])
    for sample in data['data_samples']:
        sample.gt_instances.labels[:] = 0
    losses = compute_losses(model, data)
    sum(losses.values()).backward()
    assert model.neck.lateral_convs[0].conv.weight.grad.any() and model.mask_head.conv_embed.weight.grad.any()


def test_own_data_downloads_no_backbone_if_a_checkpoint_has_one(tmp_path):
    assert change_own_data(tmp_path, size='r50').model.backbone.init_cfg.type == 'Pretrained'
    assert change_own_data(tmp_path, size='r50', load_from='fcos.pth').model.backbone.init_cfg is None


def test_optimizer_of_own_data_follows_size_and_batch(tmp_path):
    small, r50 = (change_own_data(tmp_path, size=size, batch_size=8).optim_wrapper for size in ('small', 'r50'))
    assert (small.optimizer.type, small.optimizer.lr, 'paramwise_cfg' in small) == ('AdamW', 0.002, False)
    assert (r50.optimizer.type, r50.optimizer.lr, 'paramwise_cfg' in r50) == ('SGD', 0.005, True)


@pytest.mark.parametrize('max_iters', [1, 2, 9, 15])
def test_own_data_trains_for_few_iterations(tmp_path, max_iters):
    cfg = change_own_data(tmp_path, max_iters=max_iters)
    assert cfg.train_cfg.val_interval == 1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(each, default_args=dict(optimizer=optimizer)) for each in cfg.param_scheduler]
    rates = []
    for _ in range(max_iters):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert max(rates) == 1 and rates == sorted(rates, reverse=True)


def test_readme_lists_the_configs_that_there_are():
    assert sorted(table_rows()) == [path.name for path in CONFIGS]


def test_r50_is_the_reference():
    cfg = Config.fromfile(ROOT / 'configs' / 'embedmask_r50_1x_coco.py')
    assert cfg.model.data_preprocessor.mean == [102.9801, 115.9465, 122.7717]
    assert cfg.model.data_preprocessor.std == [1.0, 1.0, 1.0]
    assert cfg.model.backbone.init_cfg.checkpoint == 'open-mmlab://detectron/resnet50_caffe'
    assert cfg.model.test_cfg.nms == dict(type='nms', iou_threshold=0.6, offset=1)
    assert (cfg.model.test_cfg.score_thr, cfg.model.test_cfg.nms_pre, cfg.model.test_cfg.max_per_img) == (
        0.05,
        1000,
        100,
    )
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.train_cfg.max_epochs == 12
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.end, warm_up.factor) == ('ConstantLR', 500, 1 / 3)
    assert steps.milestones == [8, 11]


def test_r101_is_the_reference():
    cfg = Config.fromfile(ROOT / 'configs' / 'embedmask_r101_ms-3x_coco.py')
    assert cfg.model.backbone.depth == 101
    assert cfg.model.backbone.init_cfg.checkpoint == 'open-mmlab://detectron/resnet101_caffe'
    assert cfg.train_cfg.max_epochs == 36
    assert cfg.param_scheduler[1].milestones == [28, 34]
    assert cfg.train_dataloader.dataset.pipeline[2].scales == [(1333, 640), (1333, 800)]


def test_biases_learn_at_twice_the_rate_without_decay():
    cfg = Config.fromfile(ROOT / 'configs' / 'embedmask_r50_1x_coco.py')
    model = tiny_detector()
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        (param,) = group['params']
        is_bias = names[id(param)].endswith('.bias')
        assert group['lr'] == (0.02 if is_bias else 0.01), names[id(param)]
        assert group['weight_decay'] == (0.0 if is_bias else 1e-4), names[id(param)]
        assert group['momentum'] == 0.9


def test_two_gpus_halve_the_rates_of_weights_and_biases(tmp_path, monkeypatch):
    cfg = Config.fromfile(COCO_CONFIG)
    cfg.model = tiny_model_cfg()
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    monkeypatch.setattr(runner, '_world_size', 2)
    optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    # What `--auto-scale-lr` sets.
    runner.scale_lr(optim_wrapper, dict(cfg.auto_scale_lr, enable=True))
    names = {id(p): name for name, p in runner.model.named_parameters()}
    for group in optim_wrapper.optimizer.param_groups:
        name = names[id(group['params'][0])]
        assert group['lr'] == (0.01 if name.endswith('.bias') else 0.005), name


@pytest.mark.slow
def test_dist_train_with_auto_scale_lr_on_two_processes(tmp_path):
    data_root = write_tiny_coco(tmp_path / 'data')
    command = ['bash', 'dist_train.sh']
    wait(launch(data_root, tmp_path / 'run', 4, command, '2', '--auto-scale-lr', PORT='29713'))
    checkpoint = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)
    assert {group['initial_lr'] for group in checkpoint['optimizer']['param_groups']} == {0.005, 0.01}


@pytest.mark.slow
def test_get_flops_gives_the_figures_of_the_readme():
    tool = ROOT / 'tools' / 'analysis_tools' / 'get_flops.py'
    run = subprocess.run([sys.executable, tool, *CONFIGS], check=True, capture_output=True, text=True)
    counted = dict(re.findall(r'^\| (\S+\.py) \| (.*) \|$', run.stdout, re.MULTILINE))
    assert counted == {file: ' | '.join(cells[1:3]) for file, cells in table_rows().items()}
