"""The documentation as a site."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mkdocs')
pytest.importorskip('latex2mathml')
ROOT = Path(__file__).parents[1]
BUILD = ROOT / 'docs' / 'site' / 'build.py'


@pytest.fixture(scope='module')
def build():
    spec = importlib.util.spec_from_file_location('build_site', BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_site_is_built_without_broken_links(tmp_path):
    made = subprocess.run([sys.executable, BUILD, '--out', tmp_path / 'site'], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    page = (tmp_path / 'site' / 'docs' / 'how-it-works' / 'index.html').read_text()
    assert '<math' in page and '$$' not in page
    reference = (tmp_path / 'site' / 'reference' / 'ops' / 'index.html').read_text()
    assert 'instance_masks' in reference and ':func:' not in reference
    assert (
        'href="https://arxiv.org/abs/1912.01954">EmbedMask<'
        in (tmp_path / 'site' / 'reference' / 'models' / 'index.html').read_text()
    )
    assert 'class="highlight"' in (tmp_path / 'site' / 'embedmask_mmdet' / 'targets.py' / 'index.html').read_text()


def test_broken_link_is_named(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, 'ROOT', tmp_path)
    (tmp_path / 'a.md').write_text('[b](b.md) and `[c](c.md)`')
    pages = build.Pages(tmp_path / 'pages')
    pages.add(tmp_path / 'a.md', 'a.md')
    assert pages.problems == ['a.md links to b.md, which does not exist']


def test_equations_become_mathml_but_not_in_code(build):
    text = build.outside_code('$x$ `$HOME` costs\n```bash\necho $A $B\n```\n', build.render_math)
    assert text.startswith('<math') and '`$HOME`' in text and 'echo $A $B' in text and '$x$' not in text
