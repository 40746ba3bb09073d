"""What all tests share, and what `make mutants` needs of them."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings
from mmcv.ops import get_compiling_cuda_version

from embedmask_mmdet.ops import kernels
from tests.builders import write_tiny_coco

MUTANT_STATS = Path(__file__).parents[1] / 'mutmut-stats.json'  # only exists in mutmut's copy of the repository

# Mutation tests only ask whether a test fails: the same examples in every run, and no search for the smallest one.
settings.register_profile('mutants', derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))


def pytest_collection_modifyitems(items):
    """Run quick tests first where mutmut stops at the first that fails."""
    if os.environ.get('MUTANT_UNDER_TEST') and MUTANT_STATS.exists():
        durations = json.loads(MUTANT_STATS.read_text())['duration_by_test']
        items.sort(key=lambda item: durations.get(item.nodeid, 0))


def find_what_gpu_tests_lack():
    """Say what is missing for the tests marked ``gpu``, or return an empty string."""
    if not torch.cuda.is_available():
        return 'no GPU'
    if kernels is None or 'cuda' not in kernels.DEVICES:
        return 'our extension was built without CUDA'
    return 'mmcv was built without CUDA' if get_compiling_cuda_version() == 'not available' else ''


def pytest_runtest_setup(item):
    """Skip tests marked ``gpu`` where they cannot run."""
    if item.get_closest_marker('gpu') and (reason := find_what_gpu_tests_lack()):
        pytest.skip(reason)


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    """Folder of a small dataset in COCO's format, one for each module."""
    return write_tiny_coco(tmp_path_factory.mktemp('tiny'))
