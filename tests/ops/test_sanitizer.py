"""The C++ kernels under AddressSanitizer: no read or write out of bounds."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != 'Linux' or shutil.which('g++') is None, reason='needs g++ on Linux')
def test_kernels_stay_in_bounds(tmp_path):
    flags = '-fsanitize=address -fno-omit-frame-pointer'
    build = [sys.executable, 'setup.py', 'build', '--build-base', str(tmp_path), '--build-lib', str(tmp_path / 'lib')]
    env = {**os.environ, 'CFLAGS': flags, 'LDFLAGS': flags, 'FORCE_CUDA': '0'}
    run = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]

    # Python itself is not built for it, so its library and the C++ one that it watches are loaded first.
    preload = [
        subprocess.run(['g++', f'-print-file-name={name}'], capture_output=True, text=True, check=True).stdout.strip()
        for name in ('libasan.so', 'libstdc++.so')
    ]
    (tmp_path / 'which_build.py').write_text(
        'def pytest_sessionfinish():\n    import embedmask_mmdet._ext\n    print(embedmask_mmdet._ext.__file__)\n'
    )
    env = {
        **os.environ,
        'LD_PRELOAD': ' '.join(preload),
        'ASAN_OPTIONS': 'detect_leaks=0',  # Python's own
        'PYTHONPATH': os.pathsep.join([str(tmp_path / 'lib'), str(tmp_path)]),
    }
    tests = [
        str(Path(__file__).with_name('test_kernels.py')),
        '-k',
        'not compile and not export and not opcheck and not 4_mb and not memory',
    ]
    options = ['-q', '-s', '--import-mode=append', '-o', f'pythonpath={tmp_path / "lib"}', '-p', 'which_build']
    command = [sys.executable, '-m', 'pytest', *tests, *options, '-p', 'no:cacheprovider']
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    assert 'AddressSanitizer' not in run.stdout + run.stderr
    assert str(tmp_path / 'lib') in run.stdout
