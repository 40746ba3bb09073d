"""Build `embedmask_mmdet`: its extension of C++ and CUDA kernels, and its configs and tools inside the package.

CUDA kernels are built if there is a GPU or with FORCE_CUDA=1. If the extension cannot be built, the package is built
without it and uses plain PyTorch. EMBEDMASK_REQUIRE_KERNELS=1 makes that an error.
"""

import contextlib
import os
import platform
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = 'ops/csrc'
# What mim, MMEngine and `embedmask` look for in an installed package, and where it is in the repository.
MIM_FILES = {
    'configs/embedmask': 'configs',
    'tools': 'tools',
    'demo': 'demo',
    'model-index.yml': 'model-index.yml',
}

# In pip's isolated build, torch and mmcv are those of the environment into which the package is installed.
if find_spec('torch') is None:
    sys.path.append(sysconfig.get_path('purelib'))
try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    torch, BuildExtension, REASON = None, build_ext, f'torch cannot be imported ({error})'


class BuildKernels(BuildExtension):
    """Builds the extension, or says why it cannot be built and goes on."""

    def run(self) -> None:
        """Build, or continue without kernels."""
        try:
            super().run()
        except Exception as error:
            skip_kernels(f'the compiler failed ({error})')
            self.extensions = []


class BuildPython(build_py):
    """Puts configs and tools into the package, as MMDetection's own wheel has them: in the folder ``.mim``."""

    def run(self) -> None:
        """Copy them into a wheel; in an editable install, link them, so that changes take effect."""
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib)
        for name, source in MIM_FILES.items():
            place(ROOT / source, package / 'embedmask_mmdet' / '.mim' / name, link=self.editable_mode)


def place(source: Path, target: Path, link: bool) -> None:
    """Put a file or folder at a place, as a link if that is wanted and possible, otherwise as a copy."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        # Windows allows links in its developer mode only.
        with contextlib.suppress(OSError):
            target.symlink_to(os.path.relpath(source, target.parent), source.is_dir())
            return
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    else:
        shutil.copy2(source, target)


def skip_kernels(reason: str) -> list:
    """Say that there will be no kernels; return no extensions."""
    message = (
        f'The kernels of embedmask_mmdet are not built: {reason}. '
        'Masks and the mask loss will use plain PyTorch, which is slower.'
    )
    if os.getenv('EMBEDMASK_REQUIRE_KERNELS') == '1':
        raise SystemExit(message)
    print(f'warning: {message}', file=sys.stderr)
    return []


def get_extensions() -> list:
    """Describe the extension, with CUDA kernels if they can be built. Without torch or mmcv there is none."""
    if torch is None:
        return skip_kernels(REASON)
    if find_spec('mmcv') is None:
        return skip_kernels('mmcv is not installed')

    mmcv = Path(find_spec('mmcv').origin).parent
    sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / SOURCES).glob('*.cpp'))]
    sources += [str(path.relative_to(ROOT)) for path in sorted((ROOT / SOURCES / 'cpu').glob('*.cpp'))]
    # Linking without -fopenmp makes the kernels run on torch's threads instead of a second pool of threads.
    cxx = ['-O3', '-g0', *(['-fopenmp'] if platform.system() == 'Linux' else [])]
    extension, compile_args, macros = CppExtension, {'cxx': cxx}, []
    if torch.cuda.is_available() or os.getenv('FORCE_CUDA', '0') == '1':
        extension, compile_args = CUDAExtension, {'cxx': cxx, 'nvcc': ['-O3']}
        macros = [('EMBEDMASK_WITH_CUDA', None)]
        sources += [str(path.relative_to(ROOT)) for path in sorted((ROOT / SOURCES / 'cuda').glob('*.cu'))]
    return [
        extension(
            name='embedmask_mmdet._ext',
            sources=sources,
            include_dirs=[str(ROOT / SOURCES), str(mmcv / 'ops' / 'csrc' / 'common')],
            define_macros=macros,
            extra_compile_args=compile_args,
        )
    ]


setup(ext_modules=get_extensions(), cmdclass={'build_py': BuildPython, 'build_ext': BuildKernels})
