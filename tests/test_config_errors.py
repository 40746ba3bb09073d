"""A config file with a mistake ends every tool with one line that names file, line and mistake."""

import pytest

from embedmask_mmdet.locations import REPOSITORY as ROOT
from tests.scripts import run_script

TEMPLATE = ROOT / 'configs' / 'embedmask_own-data.py'


def with_template(text):
    return text.replace('TEMPLATE', TEMPLATE.as_posix())


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ("x = 1\nclasses = ('a',\nsize = 3\n", 'my.py, line 2: '),
        ("parts = dict(small=1)\nmodel = parts['huge']\n", "my.py, line 2, `model = parts['huge']`: KeyError: 'huge'"),
        ("_base_ = './gone.py'\n", 'my.py inherits from '),
        ("_base_ = 'broken.py'\n", 'broken.py, line 1: '),
        ("_base_ = 'TEMPLATE'\nx = {{_base_.nothing}}\n", 'my.py: '),
        ("_base_ = ['TEMPLATE', 'other.py']\n", 'my.py: KeyError: "Duplicate key is not allowed among bases'),
    ],
)
def test_mistake_in_a_config_ends_with_one_line(tmp_path, text, message):
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    (tmp_path / 'other.py').write_text('model = dict()\n')
    (tmp_path / 'my.py').write_text(with_template(text))
    for tool in ('tools/train.py', 'tools/misc/check_data.py'):
        ran = run_script(ROOT / tool, ['my.py'], tmp_path)
        assert ran.code == 1 and 'Traceback' not in ran.stderr
        assert ran.stderr.count('\n') == 1, ran.stderr
        assert message in ran.stderr


def test_template_with_an_unknown_size_says_which_line_to_change(tmp_path):
    text = TEMPLATE.read_text().replace("size = 'small'", "size = 'large'")
    (tmp_path / 'my.py').write_text(text.replace("'./", f"'{TEMPLATE.parent.as_posix()}/"))
    ran = run_script(ROOT / 'tools' / 'train.py', ['my.py'], tmp_path)
    assert ran.code == 1 and "`model = parts[size]`: KeyError: 'large'" in ran.stderr
