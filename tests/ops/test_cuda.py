"""The CUDA kernels: the work of each thread on the CPU, whether they compile, and their results if there is a GPU."""

import ctypes
import math
import shutil
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from embedmask_mmdet.ops import embedding_log_prob, instance_masks, instance_rles
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

SOURCES = Path(__file__).parents[2] / 'ops' / 'csrc'
property_test = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope='module')
def thread_bodies(tmp_path_factory):
    """Compile what each CUDA thread computes for the CPU."""
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip('no g++')
    library = tmp_path_factory.mktemp('cuda_bodies') / 'cuda_bodies.so'
    source = Path(__file__).with_name('cuda_bodies.cpp')
    subprocess.run([compiler, '-std=c++17', '-O1', '-shared', '-fPIC', str(source), '-o', str(library)], check=True)
    return ctypes.CDLL(str(library))


def pointer_to(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def run_mask_bodies(library, arguments):
    """Return the masks and the RLE strings, one after the other."""
    stage = MaskStage(**arguments)
    arrays = [np.ascontiguousarray(arguments[name].numpy()) for name in EMBEDDINGS]
    arrays.append(stage.bboxes.double().numpy())
    shapes = [np.array(shape, dtype=np.int64) for shape in (stage.img_shape, stage.ori_shape)]
    instances, (h, w) = len(stage.bboxes), stage.ori_shape
    masks = np.zeros((instances, h, w), dtype=np.uint8)
    strings = np.zeros(instances * (h * w * 4 + 8) + 1, dtype=np.uint8)
    numbers = (instances, *arrays[0].shape, stage.stride, stage.upscale)
    threshold = stage.mask_thr if stage.resize_prob else math.log(stage.mask_thr)
    library.run_mask_bodies.restype = ctypes.c_int64
    size = library.run_mask_bodies(
        *map(pointer_to, arrays),
        *map(ctypes.c_int64, numbers),
        *map(pointer_to, shapes),
        ctypes.c_bool(stage.resize_prob),
        *map(ctypes.c_float, (threshold, stage.outside_value)),
        pointer_to(masks),
        pointer_to(strings),
    )
    return torch.from_numpy(masks.view(bool)), strings[:size].tobytes()


def run_log_prob_bodies(library, tensors, grad):
    """Return the log-probabilities and the gradients of the three tensors, all filled with NaN before."""
    function = library.run_log_prob_bodies_double if grad.dtype == torch.double else library.run_log_prob_bodies_float
    arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in (*tensors, grad)]
    outputs = [np.full_like(array, np.nan) for array in (arrays[3], *arrays[:3])]
    (channels, h, w), instances = tensors[0].shape, len(grad)
    function(*map(pointer_to, arrays), *map(ctypes.c_int64, (instances, channels, h * w)), *map(pointer_to, outputs))
    log_prob, *gradients = map(torch.from_numpy, outputs)
    return log_prob, gradients


@property_test
@given(arguments=draw_mask_stages())
def test_threads_compute_the_masks_of_plain_pytorch(thread_bodies, arguments):
    masks, strings = run_mask_bodies(thread_bodies, arguments)
    assert_masks_are_plain(masks, arguments)
    assert strings == b''.join(rle['counts'] for rle in encode(masks))


def test_threads_compute_tall_masks(thread_bodies):
    masks, strings = run_mask_bodies(thread_bodies, make_stripes())
    assert_masks_are_plain(masks, make_stripes())
    assert strings == b''.join(rle['counts'] for rle in encode(masks))


@pytest.mark.parametrize('row, col', [(0, 0), (1, 0), (0, 1), (1, 1), (5, 29), (4, 28), (3, 15)])
def test_threads_turn_off_pixels_of_a_nan_embedding(thread_bodies, row, col):
    arguments = make_full_masks((6, 30), [[0, 0, 240, 48]], (48, 240))
    arguments['pixel_embed'][1, row, col] = torch.nan
    masks, _ = run_mask_bodies(thread_bodies, arguments)
    assert_masks_are_plain(masks, arguments)
    assert 0 < (~masks).sum() < 1000


@pytest.mark.parametrize('side', ['left', 'top'])
def test_threads_spread_a_nan_from_the_second_column_or_row(thread_bodies, side):
    arguments = make_nan_beyond_box(side)
    masks, _ = run_mask_bodies(thread_bodies, arguments)
    assert_masks_are_plain(masks, arguments)
    assert masks.any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@property_test
@given(case=draw_log_probs())
def test_threads_compute_the_log_prob_and_gradients_of_plain_pytorch(thread_bodies, dtype, case):
    tensors, grad = [tensor.to(dtype) for tensor in case[0]], case[1].to(dtype)
    log_prob, gradients = run_log_prob_bodies(thread_bodies, tensors, grad)
    assert_log_prob_is_plain(log_prob, gradients, tensors, grad, 1e-5 if dtype == torch.float32 else 1e-12)


def test_threads_add_gradients_of_many_pixels_in_double(thread_bodies):
    tensors, grad = make_equal_pixels()
    log_prob, gradients = run_log_prob_bodies(thread_bodies, tensors, grad)
    assert_log_prob_is_plain(log_prob, gradients, tensors, grad, tolerance=2e-7)


def test_threads_ignore_an_infinite_pixel_without_gradient(thread_bodies):
    tensors, grad = [torch.zeros(2, 3, 4), torch.ones(1, 2), torch.ones(1, 2)], torch.ones(1, 3, 4)
    tensors[0][:, 1, 2], grad[:, 1, 2] = torch.inf, 0
    _, gradients = run_log_prob_bodies(thread_bodies, tensors, grad)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.slow
@pytest.mark.parametrize('source', sorted(SOURCES.glob('cuda/*.cu')), ids=lambda path: path.name)
def test_sources_compile_for_ampere_and_hopper(source, tmp_path):
    nvcc = shutil.which('nvcc')
    if nvcc is None:
        pytest.skip('no nvcc')
    from torch.utils.cpp_extension import include_paths

    mmcv = Path(find_spec('mmcv').origin).parent
    includes = [*include_paths(), str(mmcv / 'ops' / 'csrc' / 'common'), sysconfig.get_paths()['include']]
    command = [nvcc, '-c', str(source), '-o', str(tmp_path / 'object.o'), '-std=c++20', '-O3', '-Xcompiler', '-fPIC']
    command += [f'-gencode=arch=compute_{arch},code=sm_{arch}' for arch in (80, 90)]
    # torch's CPU build has no file that says how its CUDA build was configured.
    command += ['-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE', f'-I{SOURCES}', *(f'-I{path}' for path in includes)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert (tmp_path / 'object.o').stat().st_size > 0


def move_to_gpu(arguments):
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


@pytest.mark.gpu
@property_test
@given(arguments=draw_mask_stages())
def test_gpu_masks_are_plain(arguments):
    masks = instance_masks(**move_to_gpu(arguments)).cpu()
    assert_masks_are_plain(masks, arguments)
    assert instance_rles(**move_to_gpu(arguments)) == encode(masks)


@pytest.mark.gpu
def test_gpu_masks_equal_cpu_masks():
    arguments = {**make_arguments(instances=50, grid=(40, 60)), 'ori_shape': (300, 500)}
    assert torch.equal(instance_masks(**move_to_gpu(arguments)).cpu(), instance_masks(**arguments))
    assert instance_rles(**move_to_gpu(arguments)) == instance_rles(**arguments)


@pytest.mark.gpu
def test_gpu_log_prob_and_gradients_are_close_to_those_of_the_cpu():
    cpu = [tensor.requires_grad_() for tensor in make_embeddings(instances=7, grid=(33, 47))]
    gpu = [tensor.detach().cuda().requires_grad_() for tensor in cpu]
    log_probs = embedding_log_prob(*cpu), embedding_log_prob(*gpu)
    torch.testing.assert_close(log_probs[1].cpu(), log_probs[0])
    gradients = [torch.autograd.grad(log_prob.exp().sum(), tensors) for log_prob, tensors in zip(log_probs, (cpu, gpu))]
    for actual, expected in zip(gradients[1], gradients[0]):
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-4)
