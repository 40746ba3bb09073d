"""The tool that counts multiply-adds leaves nothing out that a network of ours does."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from embedmask_mmdet.analysis.flops import count_flops, format_flops
from tests.builders import COCO_CONFIG, ROOT, tiny_model_cfg
from tests.scripts import run_script

TOOL = ROOT / 'tools' / 'analysis_tools' / 'get_flops.py'


def build(dcn):
    cfg = tiny_model_cfg()
    cfg.bbox_head.dcn_on_last_conv = cfg.mask_head.dcn_on_last_conv = dcn
    if dcn:
        cfg.backbone.depth = 50
        cfg.neck.in_channels = [256, 512, 1024, 2048]
        cfg.backbone.dcn = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
        cfg.backbone.stage_with_dcn = (False, True, True, True)
    init_default_scope('mmdet')
    return MODELS.build(cfg).eval()


def count_by_hooks(model, shape):
    """Sum the outputs' sizes times the multiply-adds of one output over all modules with a convolution's weight."""
    convs = [module for module in model.modules() if getattr(getattr(module, 'weight', None), 'ndim', 0) == 4]
    counts = []
    for conv in convs:
        conv.register_forward_hook(lambda conv, _, out: counts.append(out.numel() * conv.weight[0].numel()))
    with torch.no_grad():
        model(torch.zeros(1, 3, *shape))
    return sum(counts)


@pytest.mark.parametrize('dcn', [False, True], ids=['plain', 'deformable'])
def test_all_convolutions_are_counted(dcn):
    parameters, operations, skipped = count_flops(build(dcn), (64, 96))
    assert not skipped
    assert (operations['deform_conv'] > 0) == dcn
    assert operations['conv'] + operations['deform_conv'] == count_by_hooks(build(dcn), (64, 96))
    assert parameters == sum(p.numel() for p in build(dcn).parameters())


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['embedmask_r50_1x_cocoo.py'], 'the config embedmask_r50_1x_cocoo.py does not exist. Did you mean'),
        (['mmdet::no/such.py'], 'the installed mmdet has no config no/such.py'),
        ([str(COCO_CONFIG), '--shape', '0', '800'], '--shape takes a height and a width in pixels, got [0, 800]'),
    ],
)
def test_what_cannot_be_counted_is_said(arguments, message, tmp_path):
    result = run_script(TOOL, arguments, tmp_path)
    assert result.code != 0 and not result.stdout
    assert result.stderr.startswith(f'get_flops.py: error: {message}')


def test_table_has_a_row_for_each_config():
    cfgs = {name: Config(dict(model=tiny_model_cfg())) for name in ('one.py', 'two.py')}
    init_default_scope('mmdet')
    parameters, operations, _ = count_flops(MODELS.build(tiny_model_cfg()), (64, 96))
    header, _, *rows, last = format_flops(cfgs, (64, 96))
    assert header == '| config | parameters (M) | GFLOPs at 64 x 96 |'
    cells = f'{parameters / 1e6:.1f} | {sum(operations.values()) / 1e9:.1f} |'
    assert rows == [f'| one.py | {cells}', f'| two.py | {cells}']
    assert 'Not counted: post-processing' in last
