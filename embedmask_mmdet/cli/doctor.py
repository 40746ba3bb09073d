"""Check the installation. Nothing but Python is needed to import this module, so that it can say what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from embedmask_mmdet import __version__
from embedmask_mmdet.locations import IN_REPOSITORY, PACKAGE, REPOSITORY, SCRIPTS

# The distributions that may hold a module: the official one, and the maintained fork's.
DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'onedl-mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
}
OPTIONAL = {
    'onnx': 'to export ONNX files',
    'onnxruntime': 'to run ONNX files',
    'tensorboard': 'to watch a training in TensorBoard',
}
MIN_TORCH = (2, 1)
INSTALL_MMDET = f"{sys.executable} -m pip install 'embedmask-mmdet[mmdet]'"


@dataclass
class Finding:
    """What was found in an installation.

    Args:
        severity: ``'ok'``, ``'warning'``, or ``'error'`` if training and testing would fail.
        message: What it is.
        advice: What to do about it.
    """

    severity: str
    message: str
    advice: str = ''

    def __str__(self) -> str:
        line = f'{self.severity:8}{self.message}'
        return f'{line}\n        {self.advice}' if self.advice else line


def check_installation() -> list[Finding]:
    """Check Python, packages, operators, kernels and GPU."""
    return [finding for check in CHECKS for finding in check()]


def check_python() -> Iterator[Finding]:
    """Report the Python and this package."""
    yield Finding('ok', f'Python {platform.python_version()}, {sys.executable}, {platform.platform()}')
    place = f'the repository {REPOSITORY}' if IN_REPOSITORY else str(PACKAGE)
    yield Finding('ok', f'embedmask_mmdet {__version__} of {place}')


def check_torch() -> Iterator[Finding]:
    """Check that PyTorch is there and new enough."""
    torch, problem = try_import('torch')
    if torch is None:
        yield Finding('error', f'torch: {problem}', f'Only ONNX files can be run. To train: {INSTALL_MMDET}')
        return
    old = tuple(int(part) for part in torch.__version__.split('.')[:2]) < MIN_TORCH
    yield Finding(
        'error' if old else 'ok', f'torch {torch.__version__}', 'Version 2.1 or later is needed.' if old else ''
    )


def check_openmmlab() -> Iterator[Finding]:
    """Check MMEngine, MMCV with its operators, and MMDetection."""
    for module in DISTRIBUTIONS:
        imported, problem = try_import(module)
        names = find_distributions(module)
        if len(names) > 1:
            advice = f'They write over each other. Run: pip uninstall {" ".join(names)}, then install one of them.'
            yield Finding('error', f'{module} comes from {len(names)} packages: {", ".join(names)}', advice)
        elif imported is None:
            yield Finding('error', f'{module}: {problem}', advise_on(module, problem))
        else:
            yield Finding('ok', f'{module} {imported.__version__}{f" ({names[0]})" if names else ""}')
    if try_import('mmcv')[0] is not None:
        _, problem = try_import('mmcv.ops')
        advice = advise_on_mmcv() if problem else ''
        message = f'the operators of mmcv cannot be used: {problem}' if problem else 'operators of mmcv'
        yield Finding('error' if problem else 'ok', message, advice)


def check_setuptools() -> Iterator[Finding]:
    """Check what MMEngine imports of setuptools: Python has no distutils from 3.12 on."""
    for module in ('pkg_resources', 'distutils.errors'):
        if try_import(module)[0] is None:
            message = f'{module.partition(".")[0]} is missing, which MMEngine needs'
            yield Finding('error', message, f"Run: {sys.executable} -m pip install 'setuptools<81'")


def advise_on(module: str, problem: str) -> str:
    """Return how to get a module of OpenMMLab, or how to get another version if it refuses another module."""
    if 'mmcv' in problem.lower() and module == 'mmdet':
        return 'mmdet 3.3 needs mmcv 2.1 with its operators; onedl-mmdetection 3.5 needs onedl-mmcv.'
    if module == 'mmcv':
        return advise_on_mmcv()
    return f'Run: {INSTALL_MMDET}'


def advise_on_mmcv() -> str:
    """Return how to get mmcv with its operators for the installed torch."""
    release = 'mmcv==2.1.0' if sys.version_info < (3, 13) else 'onedl-mmcv==2.3.6'
    return (
        f"Run: {sys.executable} -m pip install 'setuptools<81' wheel ninja psutil, then "
        f'{sys.executable} {SCRIPTS / "tools/env/build_mmcv.py"} {release}, and install the wheel that it names with '
        'pip install --no-deps.'
    )


def check_kernels() -> Iterator[Finding]:
    """Check that our kernels are there for each device."""
    torch, _ = try_import('torch')
    if torch is None:
        return
    ops, problem = try_import('embedmask_mmdet.ops.kernels')
    if ops is None:
        compiler = '' if shutil.which('c++') else ' A C++ compiler is needed (on Debian and Ubuntu: apt install g++).'
        advice = f'Masks and the mask loss are slower without them.{compiler} Run: {install_command()}'
        yield Finding('warning', f'no kernels of embedmask_mmdet: {problem}', advice)
        return
    yield Finding('ok', f'kernels of embedmask_mmdet for {" and ".join(sorted(ops.DEVICES))}')
    if torch.cuda.is_available() and 'cuda' not in ops.DEVICES:
        yield Finding('warning', 'there are no kernels for the GPU', f'Run: FORCE_CUDA=1 {install_command()}')


def install_command() -> str:
    """Return the command that builds the kernels."""
    source = f'-e {REPOSITORY}' if IN_REPOSITORY else '--force-reinstall --no-deps FOLDER_OF_THE_REPOSITORY'
    return f'{sys.executable} -m pip install {source}'


def check_gpu() -> Iterator[Finding]:
    """Report the GPUs, and say why one that is there cannot be used."""
    torch, _ = try_import('torch')
    if torch is None:
        return
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding('ok', f'{len(names)} GPU{"s" * (len(names) > 1)}: {", ".join(names)}; CUDA {torch.version.cuda}')
    elif shutil.which('nvidia-smi') and torch.version.cuda is None:
        yield Finding(
            'warning', 'this machine has nvidia-smi, but torch is built for the CPU', 'Install a CUDA build of torch.'
        )
    else:
        yield Finding('ok', f'no GPU; {torch.get_num_threads()} threads on the CPU')


def check_optional() -> Iterator[Finding]:
    """Report the packages that only some commands need."""
    for module, purpose in OPTIONAL.items():
        found, problem = try_import(module)
        message = f'{module} {getattr(found, "__version__", "")}' if found else f'no {module}, {purpose}: {problem}'
        yield Finding('ok', message)


def try_import(module: str) -> tuple[object | None, str]:
    """Import a module.

    Returns:
        The module and '', or None and why it cannot be imported.
    """
    try:
        return importlib.import_module(module), ''
    except Exception as error:  # mmdet asserts the version of mmcv
        return None, (str(error).strip().splitlines() or [type(error).__name__])[-1]


def find_distributions(module: str) -> list[str]:
    """List the installed distributions that hold a module of OpenMMLab."""
    found = []
    for name in DISTRIBUTIONS[module]:
        try:
            importlib.metadata.version(name)
            found.append(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_torch,
    check_setuptools,
    check_openmmlab,
    check_kernels,
    check_gpu,
    check_optional,
)
