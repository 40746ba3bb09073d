"""Build `embedmask_mmdet` and its extension of C++ and CUDA kernels, `embedmask_mmdet._ext`.

`pip install --no-build-isolation -e .` or `python setup.py build_ext --inplace`. CUDA kernels are built if there is
a GPU or with FORCE_CUDA=1. Without torch or mmcv, there is no extension and the package uses plain PyTorch.
"""

import os
import platform
import re
from importlib.util import find_spec
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
SOURCES = 'ops/csrc'


def get_version() -> str:
    """Read the version from the package."""
    return re.search(r"__version__ = '(.+)'", (ROOT / 'embedmask_mmdet' / '__init__.py').read_text())[1]


def get_extensions() -> list:
    """Describe the extension, with CUDA kernels if they can be built. Without torch or mmcv there is none."""
    if find_spec('torch') is None or find_spec('mmcv') is None:
        print('Skipping the extension of embedmask_mmdet: torch and mmcv must be installed first')
        return []
    import torch
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

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


def get_cmdclass() -> dict:
    """Return torch's `build_ext`, which can compile CUDA."""
    if find_spec('torch') is None:
        return {}
    from torch.utils.cpp_extension import BuildExtension

    return {'build_ext': BuildExtension}


setup(
    name='embedmask-mmdet',
    version=get_version(),
    description='EmbedMask instance segmentation for MMDetection',
    license='Apache-2.0',
    packages=find_packages(include=['embedmask_mmdet', 'embedmask_mmdet.*']),
    python_requires='>=3.10',
    ext_modules=get_extensions(),
    cmdclass=get_cmdclass(),
    zip_safe=False,
)
