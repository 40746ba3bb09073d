"""The tool that counts multiply-adds leaves nothing out that a network of ours does."""

import importlib.util
import re
import sys

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from tests.tiny import COCO_CONFIG, ROOT, tiny_model_cfg

TOOL = ROOT / 'tools' / 'analysis_tools' / 'get_flops.py'


def load_tool():
    spec = importlib.util.spec_from_file_location('get_flops', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


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
    parameters, operations, skipped = load_tool().count(build(dcn), (64, 96))
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
def test_what_cannot_be_counted_is_said(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
    with pytest.raises(SystemExit, match=re.escape(f'get_flops.py: error: {message}')):
        load_tool().main()
    assert not capsys.readouterr().out
