"""Build an mmcv wheel with its operators in under a minute instead of a quarter of an hour, and keep it.

mmcv compiles 77 C++ files, and nearly all the time goes into parsing torch's headers once for each, and into the
debug symbols that Python's own compiler flags ask for. This helper runs mmcv's own ``setup.py`` unchanged, but hands
the compiler two units, the bindings and all the rest, without debug symbols. The functions of the extension are
compared with those that the bindings name; where anything fails, and for a GPU, mmcv's ordinary build takes over.

    python tools/env/build_mmcv.py CACHE_DIR [--requirement mmcv==2.1.0]

needs torch, setuptools<81, wheel, ninja and psutil in the environment. The last line it prints is the wheel's path.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

BINDINGS = 'pybind.cpp'
# Each of these files defines helpers of these names, so within a unit they get the file's name in front.
FILES_WITH_HELPERS = ('bezier_align', 'roi_align_rotated', 'rotated_feature_align')
HELPERS = (
    'PreCalc',
    'add',
    'bilinear_interpolate',
    'bilinear_interpolate_gradient',
    'pre_calc_for_bilinear_interpolate',
)
# Defines the macros `min` and `max`, so nothing may come after it.
LAST_FILE = 'psamask'
# What the renaming above must not reach.
HEADERS = ('pytorch_cpp_helper.hpp', 'pytorch_device_registry.hpp')


def write_unit(sources: Sequence[Path]) -> str:
    """Write the C++ text that includes the given sources of mmcv."""
    lines = [f'#include "{header}"' for header in HEADERS]
    for source in sorted(sources, key=lambda source: (source.stem == LAST_FILE, source)):
        renamed = HELPERS if source.parent.name == 'cpu' and source.stem in FILES_WITH_HELPERS else ()
        lines += [f'#define {name} {source.stem}_{name}' for name in renamed]
        lines += [f'#include "{source.resolve()}"']
        lines += [f'#undef {name}' for name in renamed]
    return '\n'.join(lines) + '\n'


def group_sources(sources: Sequence[str], unit_dir: Path) -> list[str]:
    """Replace mmcv's C++ sources by its bindings and one unit with all the others.

    The bindings alone take as long to compile as everything else together, so two cores are kept busy.

    Raises:
        ValueError: If there are sources that are not plain C++.
    """
    foreign = [source for source in sources if not source.endswith('.cpp')]
    if foreign:
        raise ValueError(f'only plain C++ can be grouped, not {foreign}')
    unit_dir.mkdir(parents=True, exist_ok=True)
    unit = unit_dir / 'mmcv_ops_unit.cpp'
    unit.write_text(write_unit([Path(source) for source in sources if Path(source).name != BINDINGS]))
    return [source for source in sources if Path(source).name == BINDINGS] + [str(unit)]


def run_grouped_setup(source_dir: Path, wheel_dir: Path) -> None:
    """Run mmcv's ``setup.py bdist_wheel`` in this process with its sources grouped."""
    from torch.utils import cpp_extension

    class GroupedBuildExtension(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            for extension in self.extensions:
                extension.sources = group_sources(extension.sources, Path(self.build_temp))
                extension.extra_compile_args['cxx'] += ['-g0', '-w']
            super().build_extensions()

    cpp_extension.BuildExtension = GroupedBuildExtension
    os.chdir(source_dir)
    sys.path.insert(0, str(source_dir))
    sys.argv = ['setup.py', '--quiet', 'bdist_wheel', '--dist-dir', str(wheel_dir)]
    runpy.run_path('setup.py', run_name='__main__')


def unpack_source(requirement: str, folder: Path) -> Path:
    """Fetch mmcv's source distribution into ``folder`` and return the unpacked tree."""
    # pip runs setup.py for the metadata, which needs torch and so must not be isolated.
    options = ('--quiet', '--no-deps', '--no-binary', ':all:', '--no-build-isolation', '--dest', str(folder))
    subprocess.run([sys.executable, '-m', 'pip', 'download', *options, requirement], check=True)
    (archive,) = folder.glob('*.tar.gz')
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    (tree,) = (path for path in folder.iterdir() if path.is_dir())
    return tree


def find_missing_functions(source_dir: Path, wheel: Path) -> set[str]:
    """Load the extension out of the wheel and list the functions of mmcv's bindings that it lacks."""
    bindings = (source_dir / 'mmcv/ops/csrc/pytorch' / BINDINGS).read_text()
    expected = set(re.findall(r'm\.def\(\s*"(\w+)"', bindings))
    with tempfile.TemporaryDirectory(prefix='mmcv-') as folder, zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r'mmcv/_ext\..*', name))
        archive.extract(name, folder)
        code = 'import sys, torch; sys.path.insert(0, sys.argv[1]); import _ext; print(*dir(_ext))'
        command = [sys.executable, '-c', code, str(Path(folder, 'mmcv'))]
        found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout.split()
    return expected - set(found)


def build_grouped(requirement: str, wheel_dir: Path) -> Path | None:
    """Build the wheel from grouped sources; return None where that did not work."""
    with tempfile.TemporaryDirectory(prefix='mmcv-') as folder:
        try:
            tree = unpack_source(requirement, Path(folder))
            command = [sys.executable, __file__, str(wheel_dir), '--source-dir', str(tree)]
            subprocess.run(command, check=True)
            (wheel,) = wheel_dir.glob('*.whl')
            missing = find_missing_functions(tree, wheel)
        except (subprocess.CalledProcessError, ValueError, OSError) as error:
            print(f'The quick build of mmcv failed: {error}', flush=True)
            return None
    if missing:
        print(f'The quick build of mmcv lacks {sorted(missing)}.', flush=True)
        wheel.unlink()
        return None
    return wheel


def build_ordinarily(requirement: str, wheel_dir: Path) -> Path:
    """Build the wheel as mmcv's documentation says."""
    options = ('--no-deps', '--no-binary', ':all:', '--no-build-isolation', '--no-cache-dir', '--wheel-dir')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', *options, str(wheel_dir), requirement], check=True)
    (wheel,) = wheel_dir.glob('*.whl')
    return wheel


def build_kept_wheel(requirement: str, cache_dir: Path) -> Path:
    """Return the wheel for this Python, torch and kind of machine, built unless it is there already."""
    import torch

    has_gpu = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
    tag = f'cp{sys.version_info.major}{sys.version_info.minor}-{sysconfig.get_platform()}'
    key = f'{requirement.replace("==", "-")}-{tag}-torch{torch.__version__}-{"gpu" if has_gpu else "cpu"}'
    kept_dir = cache_dir / key
    for wheel in kept_dir.glob('*.whl'):
        if zipfile.is_zipfile(wheel):
            print(f'Using the wheel that an earlier build left in {kept_dir}')
            return wheel
    cache_dir.mkdir(parents=True, exist_ok=True)
    # A folder of its own, renamed when whole, so that an interrupted build leaves nothing that looks finished.
    with tempfile.TemporaryDirectory(prefix='building-', dir=cache_dir) as folder:
        wheel = None if has_gpu else build_grouped(requirement, Path(folder))
        if wheel is None:
            print('Building mmcv the ordinary way, which takes about 13 minutes on 2 cores.', flush=True)
            wheel = build_ordinarily(requirement, Path(folder))
        kept_dir.mkdir(exist_ok=True)
        return wheel.replace(kept_dir / wheel.name)


def main() -> None:
    """Build the wheel, by the quick way where it serves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('cache_dir', type=Path, help='folder in which wheels are kept')
    parser.add_argument('--requirement', default='mmcv==2.1.0', help='what to build (default: %(default)s)')
    parser.add_argument('--source-dir', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ['MMCV_WITH_OPS'] = '1'
    # ninja may be installed beside an interpreter that is not activated.
    os.environ['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    if args.source_dir:
        run_grouped_setup(args.source_dir.resolve(), args.cache_dir.resolve())
    else:
        print(build_kept_wheel(args.requirement, args.cache_dir.expanduser().resolve()))


if __name__ == '__main__':
    main()
