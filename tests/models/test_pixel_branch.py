"""The pixel branch: features of pixels from the backbone's finest stage and the neck's levels."""

import pytest
import torch

from embedmask_mmdet.models import EmbedMaskPixelBranch
from tests.builders import PLUS_CONFIG, batch, compute_losses, plus_model_cfg, tiny_detector, tiny_model_cfg

NORM = dict(type='GN', num_groups=2)


def make_branch(num_levels=3):
    torch.manual_seed(0)
    branch = EmbedMaskPixelBranch(6, level_channels=8, channels=4, num_levels=num_levels, norm_cfg=NORM)
    branch.init_weights()
    return branch


def make_inputs(sizes=((9, 13), (5, 7), (3, 4), (2, 2))):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, *sizes[0], generator=generator), [
        torch.randn(2, 8, *size, generator=generator) for size in sizes[1:]
    ]


def test_features_have_the_size_of_the_finest_stage():
    stage, levels = make_inputs()
    assert make_branch()(stage, levels).shape == (2, 4, 9, 13)


@pytest.mark.parametrize('index', range(3))
def test_each_level_and_the_stage_count(index):
    branch, (stage, levels) = make_branch(), make_inputs()
    before = branch(stage, levels)
    changed = [level + (i == index) * torch.rand_like(level) for i, level in enumerate(levels)]
    assert not torch.allclose(branch(stage, changed), before)
    assert not torch.allclose(branch(stage + torch.rand_like(stage), levels), before)


def test_levels_beyond_the_number_do_not_count():
    branch, (stage, levels) = make_branch(num_levels=1), make_inputs()
    assert torch.equal(branch(stage, levels), branch(stage, levels[:1]))


def test_coarse_levels_lie_where_they_belong():
    branch, (stage, levels) = make_branch(), make_inputs(((32, 32), (16, 16), (8, 8), (4, 4)))
    before = branch(stage, levels)
    levels[2] = levels[2].clone()
    levels[2][..., 3, 3] += 1
    change = (branch(stage, levels) - before).abs().sum((0, 1))
    # Normalization spreads a little of it.
    assert change[22:, 22:].mean() > 3 * change[:8, :8].mean()


def test_pixels_come_from_the_branch():
    model = tiny_detector(plus_model_cfg())
    assert model.num_mask_levels == 1 and model.neck_stride == 8
    feats = model.extract_feat(torch.rand(1, 3, 64, 96))
    assert feats[0].shape == (1, 32, 16, 24) and feats[1].shape[-2:] == (8, 12) and len(feats) == 6
    sum(compute_losses(model, batch([(64, 96)], [2])).values()).backward()
    assert all(weight.grad.any() for weight in model.pixel_branch.parameters())


def test_stage_of_another_stride_is_refused():
    cfg = tiny_model_cfg(PLUS_CONFIG)
    cfg.mask_head.stride = 8
    with pytest.raises(ValueError, match='mask_head.stride is 8, but 96 input pixels are 24 cells'):
        tiny_detector(cfg).extract_feat(torch.rand(1, 3, 64, 96))


def test_missing_level_is_refused():
    cfg = plus_model_cfg()
    cfg.neck.num_outs = 4
    with pytest.raises(ValueError, match='gives 4 levels, the heads need 5, with strides from 8 to 128'):
        tiny_detector(cfg).extract_feat(torch.rand(1, 3, 64, 96))


def test_mask_head_of_other_channels_is_refused():
    cfg = plus_model_cfg()
    cfg.mask_head.in_channels = 16
    with pytest.raises(ValueError, match='mask_head.in_channels must be pixel_branch.channels, 32; got 16'):
        tiny_detector(cfg)
