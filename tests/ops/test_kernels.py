"""The op, in C++ if the extension was built, against plain PyTorch."""

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

from embedmask_mmdet import ops
from embedmask_mmdet.ops import embedding_log_prob, instance_masks, instance_rles, plain
from embedmask_mmdet.ops.mask_stage import MaskStage

from .strategies import (
    EMBEDDINGS,
    assert_log_prob_is_plain,
    assert_masks_are_plain,
    draw_log_probs,
    draw_mask_stages,
    encode,
    make_arguments,
    make_embeddings,
    make_equal_pixels,
    make_full_masks,
    make_nan_beyond_box,
    make_stripes,
)

ROOT = Path(__file__).parents[2]
needs_kernels = pytest.mark.skipif(ops.kernels is None, reason='the extension was not built')
property_test = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


@needs_kernels
def test_kernels_are_used_on_devices_that_they_were_built_for():
    assert 'cpu' in ops.kernels.DEVICES
    if torch.version.cuda is None:
        assert 'cuda' not in ops.kernels.DEVICES


@property_test
@given(draw_mask_stages())
def test_masks_are_those_of_plain_pytorch(arguments):
    masks = instance_masks(**arguments)
    assert_masks_are_plain(masks, arguments)
    assert instance_rles(**arguments) == encode(masks)


@pytest.mark.parametrize('ori_shape', [(1, 1), (7, 300), (80, 112), (40, 56), (480, 640), (1500, 20)])
def test_masks_at_any_size(ori_shape):
    arguments = {**make_arguments(instances=8), 'ori_shape': ori_shape}
    masks = instance_masks(**arguments)
    assert_masks_are_plain(masks, arguments)
    assert instance_rles(**arguments) == encode(masks)
    assert masks.any() or ori_shape == (1, 1)


def test_masks_taller_than_a_word_of_cells():
    arguments = make_stripes()
    masks = instance_masks(**arguments)
    assert_masks_are_plain(masks, arguments)
    assert instance_rles(**arguments) == encode(masks)
    assert (masks[-1, 1:] != masks[-1, :-1]).any(dim=1).sum() > 20


def test_large_masks_outlive_the_call():
    arguments = {**make_arguments(instances=8), 'ori_shape': (1800, 2400)}
    masks = [instance_masks(**arguments) for _ in range(3)]
    masks[0] |= True
    assert masks[0].all()
    assert torch.equal(masks[1], masks[2].clone())
    assert_masks_are_plain(masks[2], arguments)


def test_shapes_may_be_numpy_integers():
    arguments = make_arguments()
    shapes = {name: tuple(np.array(arguments[name])) for name in ('img_shape', 'ori_shape')}
    rles = instance_rles(**{**arguments, **shapes})
    assert rles == instance_rles(**arguments)
    assert json.dumps(rles[0]['size']) == '[61, 47]'


def read_memory(field):
    """Read a size of this process in MiB."""
    return int(re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 1024


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs Linux')
def test_memory_of_freed_masks_is_returned():
    arguments = {**make_arguments(instances=8), 'ori_shape': (1800, 2400)}  # 33 MiB
    instance_masks(**arguments)
    before = read_memory('VmSize')
    for _ in range(20):
        instance_masks(**arguments)
    assert read_memory('VmSize') - before < 100


@needs_kernels
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs Linux')
@pytest.mark.parametrize(('instances', 'ori_shape'), [(1000, (480, 640)), (200, (3000, 4000))])
def test_rles_take_less_than_4_mb(instances, ori_shape):
    arguments = {**make_arguments(instances=instances, grid=(100, 136)), 'ori_shape': ori_shape}
    instance_rles(**arguments)
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # reset VmHWM, the highest memory so far
    before = read_memory('VmRSS')
    rles = instance_rles(**arguments)
    assert read_memory('VmHWM') - before < 4 + sum(len(rle['counts']) for rle in rles) / 2**20


def test_mask_fills_the_image_if_every_pixel_is_the_proposal():
    arguments = make_full_masks((10, 14), [[0, 0, 112, 80], [-9e9, -9e9, 9e9, 9e9]], (61, 47))
    assert instance_masks(**arguments).all()
    assert instance_rles(**arguments) == encode(torch.ones(2, 61, 47, dtype=torch.bool))


@pytest.mark.parametrize('row, col', [(0, 0), (1, 0), (0, 1), (1, 1), (5, 29), (4, 28), (3, 15), (0, 8), (2, 9)])
@pytest.mark.parametrize('upscale', [2, 3])
def test_pixels_of_a_nan_embedding_are_off(row, col, upscale):
    arguments = {**make_full_masks((6, 30), [[0, 0, 240, 48]], (48, 240)), 'upscale': upscale}
    arguments['pixel_embed'][1, row, col] = torch.nan
    masks = instance_masks(**arguments)
    assert_masks_are_plain(masks, arguments)
    assert 0 < (~masks).sum() < 1000


@pytest.mark.parametrize('side', ['left', 'top'])
def test_nan_in_the_second_column_or_row_spreads_to_the_first(side):
    arguments = make_nan_beyond_box(side)
    masks = instance_masks(**arguments)
    assert_masks_are_plain(masks, arguments)
    expected = plain.instance_masks(MaskStage(**arguments))
    assert masks.any() and not masks[expected == 0].any()


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('name', ['pixel_embed', 'proposal_embed', 'proposal_margin'])
def test_instances_of_nan_or_infinite_embeddings_are_off(name, value):
    arguments = make_arguments(instances=8, grid=(6, 30))
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


def test_nan_box_has_an_empty_mask():
    arguments = make_arguments()
    arguments['bboxes'] = torch.tensor([[0, 0, float('nan'), 50], [float('nan')] * 4, [50, 50, 0, 0]])
    assert not instance_masks(**arguments).any()
    assert instance_rles(**arguments) == encode(torch.zeros(3, 61, 47, dtype=torch.bool))


def test_no_instances():
    arguments = make_arguments(instances=0)
    assert instance_masks(**arguments).shape == (0, 61, 47)
    assert instance_rles(**arguments) == []
    tensors = [tensor.requires_grad_() for tensor in make_embeddings(instances=0)]
    log_prob = embedding_log_prob(*tensors)
    assert log_prob.shape == (0, 10, 14)
    log_prob.sum().backward()
    assert all(not tensor.grad.any() for tensor in tensors)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_masks_of_any_dtype_are_computed_in_float32(dtype):
    low = make_arguments(dtype=dtype)
    single = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in low.items()}
    assert torch.equal(instance_masks(**low), instance_masks(**single))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_log_prob_is_float32_or_float64(dtype):
    log_prob = embedding_log_prob(*make_embeddings(dtype=dtype))
    assert log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(log_prob, plain.embedding_log_prob(*make_embeddings(dtype=dtype)))


@pytest.mark.parametrize('name', EMBEDDINGS)
def test_log_prob_is_float64_if_one_argument_is(name):
    arguments = {key: make_arguments()[key].half() for key in EMBEDDINGS}
    arguments[name] = arguments[name].double()
    log_prob = embedding_log_prob(**arguments)
    assert log_prob.dtype == torch.float64
    expected = plain.embedding_log_prob(*(tensor.double() for tensor in arguments.values()))
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(plain.embedding_log_prob(**arguments), expected)


def test_boxes_keep_the_precision_of_float64():
    # A box that ends at cell 4 - 1e-9 is truncated to 3 cells; in float32 it would be 4.
    arguments = {**make_full_masks((4, 8), [[0, 0, 1, 1]], (32, 64)), 'upscale': 1}
    arguments['bboxes'] = torch.tensor([[0, 0, 32 - 8e-9, 32]], dtype=torch.float64)
    masks = instance_masks(**arguments)
    assert_masks_are_plain(masks, arguments)
    arguments['bboxes'] = torch.tensor([[0, 0, 32, 32]], dtype=torch.float64)
    assert not torch.equal(instance_masks(**arguments), masks)


def test_strides_make_no_difference():
    arguments = make_arguments()
    strided = {
        name: torch.stack([value, value + 1], -1)[..., 0] if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    strided['pixel_embed'] = arguments['pixel_embed'].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not strided['pixel_embed'].is_contiguous()
    assert torch.equal(instance_masks(**strided), instance_masks(**arguments))
    assert instance_rles(**strided) == instance_rles(**arguments)


def test_number_of_threads_makes_no_difference():
    arguments = make_arguments(instances=40)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = instance_rles(**arguments)
        torch.set_num_threads(5)
        assert instance_rles(**arguments) == one
    finally:
        torch.set_num_threads(threads)


def compute_log_prob(tensors, grad):
    """Compute the log-probabilities, and the gradients of the three tensors from that of the log-probabilities."""
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    log_prob = embedding_log_prob(*tensors)
    return log_prob, torch.autograd.grad(log_prob, tensors, grad)


@property_test
@given(draw_log_probs())
def test_log_prob_and_gradients_are_those_of_plain_pytorch(case):
    tensors, grad = case
    assert_log_prob_is_plain(*compute_log_prob(tensors, grad), tensors, grad)


def test_gradients_of_many_pixels_are_added_in_double():
    tensors, grad = make_equal_pixels()
    assert_log_prob_is_plain(*compute_log_prob(tensors, grad), tensors, grad, tolerance=1e-6)


def test_gradients_of_all_threads_are_added():
    tensors = make_embeddings(instances=7, grid=(90, 130))
    grad = torch.randn(7, 90, 130, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert_log_prob_is_plain(*compute_log_prob(tensors, grad), tensors, grad)
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_infinite_pixels_without_gradient_change_no_gradient():
    tensors, grad = [torch.zeros(2, 10, 20), torch.ones(1, 2), torch.ones(1, 2)], torch.ones(1, 10, 20)
    tensors[0][:, 5], grad[:, 4:7] = torch.inf, 0
    _, gradients = compute_log_prob(tensors, grad)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_log_prob_and_gradients_of_strided_tensors():
    tensors, grad = make_embeddings(), torch.randn(3, 14, 10, generator=torch.Generator().manual_seed(0))
    strided = [torch.stack([tensor, tensor + 1], -1)[..., 0] for tensor in tensors]
    expected = compute_log_prob(tensors, grad.mT.contiguous())
    actual = compute_log_prob(strided, grad.mT)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize('margin', [1e-6, 1e6])
def test_log_prob_and_gradients_stay_finite(margin):
    tensors = [torch.tensor(values).requires_grad_() for values in ([[[1e4, -1e4]]], [[-1e4], [1e4]], [[margin]] * 2)]
    log_prob = embedding_log_prob(*tensors)
    log_prob.sum().backward()
    assert all(tensor.isfinite().all() for tensor in [log_prob, *(tensor.grad for tensor in tensors)])
    assert log_prob[1, 0, 0] == 0


def test_autocast_makes_no_difference():
    tensors = make_embeddings()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        log_prob = embedding_log_prob(*tensors)
    assert torch.equal(log_prob, embedding_log_prob(*tensors))


@pytest.mark.parametrize('implementation', [embedding_log_prob, plain.embedding_log_prob])
def test_second_derivatives_raise(implementation):
    tensors = [tensor.requires_grad_() for tensor in make_embeddings()]
    gradients = torch.autograd.grad(implementation(*tensors).square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradients[0].sum().backward()


def test_gradcheck():
    tensors = [
        tensor.requires_grad_() for tensor in make_embeddings(instances=2, grid=(3, 5), channels=3, dtype=torch.double)
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
        'embedding_log_prob': tuple(tensor.requires_grad_() for tensor in make_embeddings()),
        'embedding_log_prob_backward': (torch.ones(3, 10, 14), *make_embeddings()),
        'instance_masks': (*make_embeddings(), make_arguments()['bboxes'], *RESIZE),
        'instance_rles': (*make_embeddings(), make_arguments()['bboxes'], *RESIZE),
    }
    torch.library.opcheck(getattr(torch.ops.embedmask, name).default, arguments[name])


@needs_kernels
def test_compile_sees_one_graph():
    arguments = make_arguments()

    def both(pixel_embed, proposal_embed, proposal_margin):
        log_prob = embedding_log_prob(pixel_embed, proposal_embed, proposal_margin)
        tensors = dict(pixel_embed=pixel_embed, proposal_embed=proposal_embed, proposal_margin=proposal_margin)
        return log_prob, instance_masks(**{**arguments, **tensors})

    tensors = [tensor.requires_grad_() for tensor in make_embeddings()]
    compiled = torch.compile(both, backend='aot_eager', fullgraph=True)
    log_prob, masks = compiled(*tensors)
    torch.testing.assert_close(log_prob, plain.embedding_log_prob(*tensors))
    assert torch.equal(masks, instance_masks(**arguments))
    gradients = torch.autograd.grad(log_prob.exp().sum(), tensors)
    expected = torch.autograd.grad(plain.embedding_log_prob(*tensors).exp().sum(), tensors)
    torch.testing.assert_close(gradients, expected)


@needs_kernels
def test_export_keeps_the_operator():
    arguments = make_arguments()

    class Masks(torch.nn.Module):
        def forward(self, pixel_embed):
            return instance_masks(**{**arguments, 'pixel_embed': pixel_embed})

    program = torch.export.export(Masks(), (arguments['pixel_embed'],))
    assert 'embedmask.instance_masks' in program.graph_module.code
    assert torch.equal(program.module()(arguments['pixel_embed']), instance_masks(**arguments))


@pytest.mark.parametrize('device, build', [('cpu', ': pip install'), ('cuda', ': FORCE_CUDA=1 pip install')])
def test_warning_names_the_device_and_its_build(device, build):
    ops._warn_of_plain.cache_clear()
    with pytest.warns(UserWarning, match=f"'{device}'.*{build} -e"):
        ops._warn_of_plain(device)


FALLBACK = """
import sys, warnings
sys.modules['embedmask_mmdet._ext'] = None  # as if it was not built
import torch
from embedmask_mmdet.ops import embedding_log_prob
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    for _ in range(3):
        log_prob = embedding_log_prob(torch.zeros(2, 3, 4), torch.ones(1, 2), torch.ones(1, 2))
assert (log_prob == -2).all()
print(len(caught), caught[0].filename, caught[0].message)
"""


def test_one_warning_tells_how_to_build_the_extension():
    run = subprocess.run(
        [sys.executable, '-c', FALLBACK],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': '.'},
    )
    assert run.returncode == 0, run.stderr
    # Other packages may print before.
    warning = run.stdout.splitlines()[-1]
    assert warning.startswith('1 <string> ')
    assert 'pip install -e .' in warning
