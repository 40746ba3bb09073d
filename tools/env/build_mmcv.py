"""Build mmcv's wheel with its operators in one minute instead of 13, keep it, and print its path.

Nearly all the time of mmcv's own build goes into parsing torch's headers once for each of 77 files. Here two files
remain: the bindings, and one that includes all the others. If that fails, and for a GPU, mmcv is built as it is.

    python tools/env/build_mmcv.py mmcv==2.1.0    # or onedl-mmcv==2.3.6

needs torch, requirements/build.txt and pip in the environment.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'embedmask_mmdet', 'wheels')
# These files in `cpu` define helpers of the same names, so within one unit each gets names of its own.
FILES_WITH_HELPERS = ('bezier_align', 'roi_align_rotated', 'rotated_feature_align')
HELPERS = (
    'PreCalc',
    'add',
    'bilinear_interpolate',
    'bilinear_interpolate_gradient',
    'pre_calc_for_bilinear_interpolate',
)
# Included first, so that the renaming does not reach them.
HEADERS = ('pytorch_cpp_helper.hpp', 'pytorch_device_registry.hpp')
# Defines the macros `min` and `max`, so nothing may follow it.
LAST_FILE = 'psamask'


def group_sources(folder: Path) -> None:
    """Replace the C++ sources in a folder with mmcv's bindings and one unit that includes all the others."""
    lines = [f'#include "{header}"' for header in HEADERS]
    sources = [*folder.glob('*.cpp'), *folder.glob('cpu/*.cpp')]
    for source in sorted(sources, key=lambda source: (source.stem == LAST_FILE, source)):
        if source.name == 'pybind.cpp':
            continue
        helpers = HELPERS if source.parent.name == 'cpu' and source.stem in FILES_WITH_HELPERS else ()
        lines += [f'#define {helper} {source.stem}_{helper}' for helper in helpers]
        # mmcv's setup.py compiles all files of the suffix .cpp.
        lines += [f'#include "{source.rename(source.with_suffix(".inc")).as_posix()}"']
        lines += [f'#undef {helper}' for helper in helpers]
    (folder / 'unit.cpp').write_text('\n'.join(lines) + '\n')


def run_pip(command: str, *arguments: str | Path) -> None:
    """Run pip without build isolation, which would hide torch from mmcv and so leave out the operators."""
    # Python's own compiler flags ask for debug symbols, which double the time.
    variables = {**os.environ, 'MMCV_WITH_OPS': '1', 'CFLAGS': f'{os.environ.get("CFLAGS", "")} -g0 -w'}
    pip = (sys.executable, '-m', 'pip', command, '--quiet', '--no-deps', '--no-build-isolation')
    subprocess.run([*pip, *arguments], check=True, env=variables)


def build_grouped(requirement: str, wheels: Path) -> None:
    """Build a wheel from grouped sources."""
    with tempfile.TemporaryDirectory(prefix='mmcv-') as folder:
        run_pip('download', '--no-binary=:all:', f'--dest={folder}', requirement)
        (archive,) = Path(folder).glob('*.tar.gz')
        with tarfile.open(archive) as tar:
            tar.extractall(folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
        (sources,) = Path(folder).glob('*/mmcv/ops/csrc/pytorch')
        group_sources(sources)
        run_pip('wheel', f'--wheel-dir={wheels}', sources.parents[3])


def find_or_build_wheel(requirement: str) -> Path:
    """Return the wheel for this Python, torch and kind of device, built unless it is there already."""
    import torch

    has_gpu = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
    python = f'{sys.implementation.cache_tag}-{sysconfig.get_platform()}'
    kept = CACHE / f'{requirement}-{python}-torch{torch.__version__}-{"gpu" if has_gpu else "cpu"}'
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, ignore_cleanup_errors=True) as folder:
            try:
                if has_gpu or os.name == 'nt':
                    raise ValueError('only plain C++ was tried')
                build_grouped(requirement, Path(folder))
            except (subprocess.CalledProcessError, ValueError, OSError) as error:
                print(f'Building mmcv as it is, because its sources could not be grouped: {error}', flush=True)
                run_pip('wheel', '--no-binary=:all:', '--no-cache-dir', f'--wheel-dir={folder}', requirement)
            # Only a complete wheel gets this name.
            Path(folder).rename(kept)
    (wheel,) = kept.glob('*.whl')
    return wheel


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('requirement', help='mmcv==2.1.0 or onedl-mmcv==2.3.6')
    print(find_or_build_wheel(parser.parse_args().requirement))
