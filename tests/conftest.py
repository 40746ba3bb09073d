"""What all tests share, and what `make mutants` needs of them."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from tests.builders import write_tiny_coco

MUTANT_STATS = Path(__file__).parents[1] / 'mutmut-stats.json'  # only exists in mutmut's copy of the repository

# Mutation tests only ask whether a test fails: the same examples in every run, and no search for the smallest one.
settings.register_profile('mutants', derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))


def pytest_collection_modifyitems(items):
    """Run quick tests first where mutmut stops at the first that fails."""
    if os.environ.get('MUTANT_UNDER_TEST') and MUTANT_STATS.exists():
        durations = json.loads(MUTANT_STATS.read_text())['duration_by_test']
        items.sort(key=lambda item: durations.get(item.nodeid, 0))


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    """Folder of a small dataset in COCO's format, one for each module."""
    return write_tiny_coco(tmp_path_factory.mktemp('tiny'))
