"""The CUDA kernels: what can be checked of them without a GPU, and their results where there is one."""

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

from embedmask_mmdet.ops import embedding_log_prob, instance_masks, instance_rles, kernels
from embedmask_mmdet.ops.mask_stage import MaskStage

from .cases import assert_masks_are_plain, encode, mask_stages
from .test_kernels import case, embeddings

SOURCES = Path(__file__).parents[2] / 'ops' / 'csrc'
property_test = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope='module')
def cuda_bodies(tmp_path_factory):
    """What each CUDA thread computes, compiled for the CPU."""
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip('no g++')
    library = tmp_path_factory.mktemp('cuda_bodies') / 'cuda_bodies.so'
    source = Path(__file__).with_name('cuda_bodies.cpp')
    subprocess.run([compiler, '-std=c++17', '-O1', '-shared', '-fPIC', str(source), '-o', str(library)], check=True)
    function = ctypes.CDLL(str(library)).cuda_bodies
    function.restype = ctypes.c_int64
    return function


def call_bodies(function, arguments):
    def pointer(array):
        return array.ctypes.data_as(ctypes.c_void_p)

    names = ('pixel_embed', 'proposal_embed', 'proposal_margin')
    arrays = [np.ascontiguousarray(arguments[name].numpy()) for name in names]
    arrays.append(arguments['bboxes'].double().numpy())
    shapes = [np.array(arguments[name], dtype=np.int64) for name in ('img_shape', 'ori_shape')]
    instances, (h, w) = len(arrays[3]), arguments['ori_shape']
    masks = np.zeros((instances, h, w), dtype=np.uint8)
    strings = np.zeros(instances * (h * w * 4 + 8) + 1, dtype=np.uint8)
    numbers = (instances, *arrays[0].shape, arguments['stride'], arguments['upscale'])
    mask_thr, resize_prob = arguments['mask_thr'], arguments['resize_prob']
    threshold = mask_thr if resize_prob else math.log(mask_thr)
    size = function(
        *map(pointer, arrays),
        *map(ctypes.c_int64, numbers),
        *map(pointer, shapes),
        ctypes.c_bool(resize_prob),
        *map(ctypes.c_float, (threshold, MaskStage(**arguments).outside_value)),
        pointer(masks),
        pointer(strings),
    )
    return torch.from_numpy(masks.view(bool)), strings[:size].tobytes()


@property_test
@given(arguments=mask_stages())
def test_the_threads_work_is_that_of_the_plain_path(cuda_bodies, arguments):
    masks, strings = call_bodies(cuda_bodies, arguments)
    assert_masks_are_plain(masks, arguments)
    assert strings == b''.join(rle['counts'] for rle in encode(masks))


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


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or kernels is None or 'cuda' not in kernels.DEVICES,
    reason='no GPU, or the extension was built without CUDA',
)


def on_gpu(arguments):
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


@needs_gpu
@property_test
@given(arguments=mask_stages())
def test_masks_on_the_gpu(arguments):
    masks = instance_masks(**on_gpu(arguments)).cpu()
    assert_masks_are_plain(masks, arguments)
    assert instance_rles(**on_gpu(arguments)) == encode(masks)


@needs_gpu
def test_masks_on_the_gpu_are_those_on_the_cpu():
    arguments = {**case(instances=50, grid=(40, 60)), 'ori_shape': (300, 500)}
    assert torch.equal(instance_masks(**on_gpu(arguments)).cpu(), instance_masks(**arguments))
    assert instance_rles(**on_gpu(arguments)) == instance_rles(**arguments)


@needs_gpu
def test_log_prob_and_gradients_on_the_gpu():
    cpu = [tensor.requires_grad_() for tensor in embeddings(instances=7, grid=(33, 47))]
    gpu = [tensor.detach().cuda().requires_grad_() for tensor in cpu]
    log_probs = embedding_log_prob(*cpu), embedding_log_prob(*gpu)
    torch.testing.assert_close(log_probs[1].cpu(), log_probs[0])
    gradients = [torch.autograd.grad(log_prob.exp().sum(), tensors) for log_prob, tensors in zip(log_probs, (cpu, gpu))]
    for ours, expected in zip(gradients[1], gradients[0]):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-4, atol=1e-4)
