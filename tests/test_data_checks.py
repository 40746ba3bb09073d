"""Data that people have, through ``tools/train.py``: one line says what is wrong, or it trains."""

import json
import shutil

import cv2
import numpy as np
import pytest

from tests.builders import ROOT, tiny_cfg
from tests.scripts import run_script

TRAIN = ROOT / 'tools/train.py'
CHECK = ROOT / 'tools/misc/check_data.py'
CASES = ROOT.parent / 'shared' / 'cases'
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
BAR = [40, 5, 48, 5, 48, 40, 40, 40]


def make_content():
    """The file ``good.json`` of the cases: an image of 64 x 48 pixels with a square and a bar."""
    about = dict(image_id=1, iscrowd=0)
    return dict(
        images=[dict(id=1, file_name='1.png', height=48, width=64)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
        annotations=[
            dict(about, id=1, category_id=1, bbox=[10, 10, 20, 20], area=400, segmentation=[SQUARE]),
            dict(about, id=2, category_id=2, bbox=[40, 5, 8, 35], area=280, segmentation=[BAR]),
        ],
    )


def write_project(folder, name='tiny.py', **images):
    """Write an image, a good annotation file, and a config that trains on it and validates with it."""
    (folder / 'images').mkdir()
    image = np.full((48, 64, 3), 40, np.uint8)
    image[10:30, 10:30], image[5:40, 40:48] = 200, 120
    cv2.imwrite(str(folder / 'images/1.png'), image)
    (folder / 'annotations.json').write_text(json.dumps(make_content()))
    cfg = tiny_cfg(folder, folder / 'unused')
    cfg.pop('work_dir')
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.metainfo = dict(classes=('a', 'b'))
    cfg.train_dataloader.dataset.filter_cfg.min_size = 8
    shutil.copy(folder / 'annotations.json', folder / 'val.json')
    cfg.val_dataloader.dataset.ann_file = 'val.json'
    cfg.val_evaluator.ann_file = str(folder / 'val.json')
    cfg.test_cfg = dict(type='TestLoop')
    cfg.dump(folder / name)
    return folder


@pytest.fixture(scope='module')
def good_project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp('project'))


@pytest.fixture
def project(good_project, tmp_path):
    """A copy of the project that a test may change; paths in its config name the copy."""
    shutil.copytree(good_project, tmp_path, dirs_exist_ok=True)
    config = tmp_path / 'tiny.py'
    config.write_text(config.read_text().replace(str(good_project), str(tmp_path)))
    return tmp_path


def train(project, *options):
    options = ('--cfg-options', *options) if options else ()
    return run_script(TRAIN, ['tiny.py', *options], project)


def last_line(result):
    """The only line that a failed tool says, without warnings of libraries."""
    assert result.code == 1
    assert 'Traceback' not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith(('train.py: error', 'test.py: error'))]
    assert len(lines) == 1 and result.stderr.rstrip().endswith(lines[0])
    return lines[0]


def change(path, edit):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content) or content))


# The cases that people have, as training and as validation file


REFUSED = dict(
    category_name_twice=['"a" is the name of ids 0, 1', 'Rename or remove'],
    crowd_without_mask=['without "segmentation" in the images 1.png', 'add them, or remove'],
    empty_polygon=['without "segmentation" in the images 1.png', 'add them, or remove'],
    flat_polygon=['"segmentation" is one list of numbers', 'id 1', 'another pair of brackets'],
    ids_twice=['several "annotations" have the same id: 1', 'Number them from 1'],
    nan_coordinate=['coordinates that are NaN', 'id 1', 'Redraw or remove'],
    no_area=['"annotations" without "area": id 1, id 2', 'fill_in.py'],
    no_file_name=['"images" without "file_name": id 1', "Write the file's name"],
    no_height=['"images" without "height": id 1 (1.png)', 'in pixels'],
    string_category_ids=['"id" in "categories" is a string: id 1, id 2'],
)
TAKEN = dict(
    good='',
    category_order='',
    iscrowd_null='',
    short_polygon='fewer than three points, or with an odd number of coordinates, are left out',
)
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason='no ../shared/cases')


@needs_cases
def test_all_cases_are_tested():
    assert {path.stem for path in CASES.glob('*.json')} == {*REFUSED, *TAKEN}


@needs_cases
@pytest.mark.parametrize('file', ['annotations.json', 'val.json'])
@pytest.mark.parametrize('case', REFUSED)
def test_cases_that_are_refused_in_one_line(project, case, file):
    shutil.copyfile(CASES / f'{case}.json', project / file)
    before = (project / file).read_bytes()
    message = last_line(train(project))
    assert all(part in message for part in [file, *REFUSED[case]])
    assert (project / file).read_bytes() == before
    assert not list(project.glob('work_dirs/*/*.pth'))


@needs_cases
@pytest.mark.parametrize('case', TAKEN)
def test_cases_that_are_taken(project, case):
    for file in ('annotations.json', 'val.json'):
        shutil.copyfile(CASES / f'{case}.json', project / file)
    result = train(project)
    assert result.code == 0, result.stderr[-3000:]
    (log,) = project.glob('work_dirs/tiny/*/*.log')
    assert TAKEN[case] in log.read_text()
    assert (project / 'work_dirs/tiny/epoch_1.pth').is_file()
