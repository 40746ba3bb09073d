"""The kernels against the plain path."""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedmask_mmdet import ops
from embedmask_mmdet.ops import embedding_log_prob, instance_masks, instance_rles, plain

from .cases import assert_masks_are_plain, encode, mask_stages

ROOT = Path(__file__).parents[2]
needs_kernels = pytest.mark.skipif(ops.kernels is None, reason='the extension was not built')
property_test = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


def case(instances=3, grid=(10, 14), channels=16, dtype=torch.float32):
    """A smooth embedding, and instances that stand on it."""
    generator = torch.Generator().manual_seed(0)
    h, w = grid
    coarse = torch.randn(1, channels, 4, 5, generator=generator, dtype=torch.float64)
    pixel_embed = torch.nn.functional.interpolate(coarse, grid, mode='bicubic')[0]
    centres = torch.rand(instances, 2, generator=generator) * torch.tensor([8 * w, 8 * h])
    sides = torch.rand(instances, 2, generator=generator) * 60
    proposal_embed = pixel_embed[:, (centres[:, 1] // 8).long(), (centres[:, 0] // 8).long()].T
    proposal_margin = torch.rand(instances, channels, generator=generator, dtype=torch.float64) / channels
    return dict(
        pixel_embed=pixel_embed.to(dtype),
        proposal_embed=proposal_embed.to(dtype),
        proposal_margin=proposal_margin.to(dtype),
        bboxes=torch.cat([centres - sides, centres + sides], 1),
        stride=8,
        img_shape=(8 * h, 8 * w),
        ori_shape=(61, 47),
        mask_thr=0.53,
        upscale=2,
    )


def embeddings(**kwargs):
    return tuple(case(**kwargs)[name] for name in ('pixel_embed', 'proposal_embed', 'proposal_margin'))


@property_test
@given(mask_stages())
def test_masks_are_those_of_the_plain_path(arguments):
    masks = instance_masks(**arguments)
    assert_masks_are_plain(masks, arguments)
    assert instance_rles(**arguments) == encode(masks)


@pytest.mark.parametrize('ori_shape', [(1, 1), (7, 300), (80, 112), (40, 56), (480, 640), (1500, 20)])
def test_masks_at_any_size(ori_shape):
    arguments = {**case(instances=8), 'ori_shape': ori_shape}
    masks = instance_masks(**arguments)
    assert_masks_are_plain(masks, arguments)
    assert instance_rles(**arguments) == encode(masks)
    assert masks.any() or ori_shape == (1, 1)


def test_large_masks_outlive_the_call():
    arguments = {**case(instances=8), 'ori_shape': (1800, 2400)}
    masks = [instance_masks(**arguments) for _ in range(3)]
    masks[0] |= True
    assert masks[0].all()
    assert torch.equal(masks[1], masks[2].clone())
    assert_masks_are_plain(masks[2], arguments)


def test_shapes_may_be_numpy_integers():
    arguments = case()
    shapes = {name: tuple(np.array(arguments[name])) for name in ('img_shape', 'ori_shape')}
    rles = instance_rles(**{**arguments, **shapes})
    assert rles == instance_rles(**arguments)
    assert json.dumps(rles[0]['size']) == '[61, 47]'


def memory(field):
    return int(re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 1024


@needs_kernels
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs Linux')
@pytest.mark.parametrize(('instances', 'ori_shape'), [(1000, (480, 640)), (200, (3000, 4000))])
def test_rles_take_less_than_4_mb(instances, ori_shape):
    arguments = {**case(instances=instances, grid=(100, 136)), 'ori_shape': ori_shape}
    instance_rles(**arguments)
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # forgets the highest memory so far
    before = memory('VmRSS')
    rles = instance_rles(**arguments)
    assert memory('VmHWM') - before < 4 + sum(len(rle['counts']) for rle in rles) / 2**20


def test_a_mask_fills_the_image_where_every_pixel_is_the_proposal():
    arguments = case(instances=2)
    arguments['pixel_embed'] = torch.zeros(16, 10, 14)
    arguments['proposal_embed'] = torch.zeros(2, 16)
    arguments['bboxes'] = torch.tensor([[0, 0, 112, 80], [-9e9, -9e9, 9e9, 9e9]])
    assert instance_masks(**arguments).all()
    assert instance_rles(**arguments) == encode(torch.ones(2, 61, 47, dtype=torch.bool))


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('name', ['pixel_embed', 'proposal_embed', 'proposal_margin'])
def test_pixels_of_embeddings_that_are_not_finite_are_off(name, value):
    arguments = case(instances=8, grid=(6, 30))
    tensor = arguments[name]
    if name == 'pixel_embed':
        tensor[3, [0, 1, 5, 3], [0, 9, 29, 15]] = value
    else:
        tensor[::2, 3] = abs(value)
    masks = instance_masks(**arguments)
    assert_masks_are_plain(masks, arguments)
    assert instance_rles(**arguments) == encode(masks)
    if name != 'pixel_embed':
        assert not masks[::2].any()


def test_a_nan_box_has_an_empty_mask():
    arguments = case()
    arguments['bboxes'] = torch.tensor([[0, 0, float('nan'), 50], [float('nan')] * 4, [50, 50, 0, 0]])
    assert not instance_masks(**arguments).any()
    assert instance_rles(**arguments) == encode(torch.zeros(3, 61, 47, dtype=torch.bool))


def test_no_instances():
    arguments = case(instances=0)
    assert instance_masks(**arguments).shape == (0, 61, 47)
    assert instance_rles(**arguments) == []
    tensors = [tensor.requires_grad_() for tensor in embeddings(instances=0)]
    log_prob = embedding_log_prob(*tensors)
    assert log_prob.shape == (0, 10, 14)
    log_prob.sum().backward()
    assert all(not tensor.grad.any() for tensor in tensors)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_single(dtype):
    low = case(dtype=dtype)
    single = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in low.items()}
    assert torch.equal(instance_masks(**low), instance_masks(**single))
    log_prob = embedding_log_prob(*embeddings(dtype=dtype))
    assert log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(log_prob, plain.embedding_log_prob(*embeddings(dtype=dtype)))


def test_layouts_make_no_difference():
    arguments = case()
    strided = {
        name: torch.stack([value, value + 1], -1)[..., 0] if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    strided['pixel_embed'] = arguments['pixel_embed'].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not strided['pixel_embed'].is_contiguous()
    assert torch.equal(instance_masks(**strided), instance_masks(**arguments))
    assert instance_rles(**strided) == instance_rles(**arguments)


def test_threads_make_no_difference():
    arguments = case(instances=40)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = instance_rles(**arguments)
        torch.set_num_threads(5)
        assert instance_rles(**arguments) == one
    finally:
        torch.set_num_threads(threads)


@property_test
@given(st.integers(0, 5), st.integers(1, 9), st.integers(1, 12), st.integers(1, 40), st.sampled_from([1.0, 1e2, 1e4]))
def test_log_prob_and_gradients_are_those_of_the_plain_path(instances, channels, h, w, scale):
    generator = torch.Generator().manual_seed(channels * w)
    tensors = [
        torch.randn(channels, h, w, generator=generator) * scale,
        torch.randn(instances, channels, generator=generator) * scale,
        torch.rand(instances, channels, generator=generator) * scale,
    ]
    weight = torch.randn(instances, h, w, generator=generator)
    weight *= torch.rand(instances, h, w, generator=generator) < 0.3
    single = [tensor.clone().requires_grad_() for tensor in tensors]
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    actual, expected = embedding_log_prob(*single), plain.embedding_log_prob(*exact)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=0)
    gradients = torch.autograd.grad((actual * weight).sum(), single)
    for gradient, oracle in zip(gradients, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        if oracle.numel():
            assert (gradient - oracle).abs().max() <= 1e-5 * oracle.abs().max()


@pytest.mark.parametrize('margin', [1e-6, 1e6])
def test_log_prob_and_gradients_stay_finite(margin):
    tensors = [torch.tensor(values).requires_grad_() for values in ([[[1e4, -1e4]]], [[-1e4], [1e4]], [[margin]] * 2)]
    log_prob = embedding_log_prob(*tensors)
    log_prob.sum().backward()
    assert all(tensor.isfinite().all() for tensor in [log_prob, *(tensor.grad for tensor in tensors)])
    assert log_prob[1, 0, 0] == 0


def test_distances_are_single_under_autocast():
    tensors = embeddings()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        log_prob = embedding_log_prob(*tensors)
    assert torch.equal(log_prob, embedding_log_prob(*tensors))


def test_gradcheck():
    tensors = [
        tensor.requires_grad_() for tensor in embeddings(instances=2, grid=(3, 5), channels=3, dtype=torch.double)
    ]
    assert torch.autograd.gradcheck(embedding_log_prob, tensors)


RESIZE = (8, (80, 112), (61, 47), 0.53, -10.0, False, 2)


@needs_kernels
@pytest.mark.parametrize(
    'name', ['embedding_log_prob', 'embedding_log_prob_backward', 'instance_masks', 'instance_rles']
)
def test_opcheck(name):
    if not hasattr(torch.library, 'opcheck'):
        pytest.skip('torch.library.opcheck came with torch 2.4')
    arguments = {
        'embedding_log_prob': tuple(tensor.requires_grad_() for tensor in embeddings()),
        'embedding_log_prob_backward': (torch.ones(3, 10, 14), *embeddings()),
        'instance_masks': (*embeddings(), case()['bboxes'], *RESIZE),
        'instance_rles': (*embeddings(), case()['bboxes'], *RESIZE),
    }
    torch.library.opcheck(getattr(torch.ops.embedmask, name).default, arguments[name])


@needs_kernels
def test_compile_sees_one_graph():
    arguments = case()

    def both(pixel_embed, proposal_embed, proposal_margin):
        log_prob = embedding_log_prob(pixel_embed, proposal_embed, proposal_margin)
        tensors = dict(pixel_embed=pixel_embed, proposal_embed=proposal_embed, proposal_margin=proposal_margin)
        return log_prob, instance_masks(**{**arguments, **tensors})

    tensors = [tensor.requires_grad_() for tensor in embeddings()]
    compiled = torch.compile(both, backend='aot_eager', fullgraph=True)
    log_prob, masks = compiled(*tensors)
    torch.testing.assert_close(log_prob, plain.embedding_log_prob(*tensors))
    assert torch.equal(masks, instance_masks(**arguments))
    gradients = torch.autograd.grad(log_prob.exp().sum(), tensors)
    expected = torch.autograd.grad(plain.embedding_log_prob(*tensors).exp().sum(), tensors)
    torch.testing.assert_close(gradients, expected)


@needs_kernels
def test_export_keeps_the_operator():
    arguments = case()

    class Masks(torch.nn.Module):
        def forward(self, pixel_embed):
            return instance_masks(**{**arguments, 'pixel_embed': pixel_embed})

    program = torch.export.export(Masks(), (arguments['pixel_embed'],))
    assert 'embedmask.instance_masks' in program.graph_module.code
    assert torch.equal(program.module()(arguments['pixel_embed']), instance_masks(**arguments))


FALLBACK = """
import sys, warnings
sys.modules['embedmask_mmdet._ext'] = None  # as where it was not built
import torch
from embedmask_mmdet.ops import embedding_log_prob
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    for _ in range(3):
        log_prob = embedding_log_prob(torch.zeros(2, 3, 4), torch.ones(1, 2), torch.ones(1, 2))
assert (log_prob == -2).all()
print(len(caught), caught[0].message)
"""


def test_without_the_extension_one_warning_says_how_to_build_it():
    run = subprocess.run(
        [sys.executable, '-c', FALLBACK],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': '.'},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith('1 ')
    assert 'pip install --no-build-isolation -e .' in run.stdout
