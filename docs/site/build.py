"""Build the documentation as a site (`make docs`): the repository's own pages, with broken links as errors.

    python docs/site/build.py [--out build/site]

Pages stay where GitHub shows them. Copies go to a folder for MkDocs, with all that they link to: code as pages of its
own, folders as lists of their files. Equations become MathML, so that the site needs no other server.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from latex2mathml.converter import convert

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]
LINK = re.compile(r'(?<=\]\()([^)\s#:]+)((?:#[^)\s]*)?)(?=\))')
CODE = re.compile(r'(^```.*?^```|`[^`\n]+`)', re.M | re.S)
MATH = re.compile(r'\$\$(.+?)\$\$|\$([^$\n]+)\$', re.S)
ROLE = re.compile(r':(?:func|meth|class|mod):(?=<code>)')
REST_LINK = re.compile(r'<code>([^<]+?) &lt;(https?://[^<]+?)&gt;</code>_')
LANGUAGES = {'.py': 'python', '.sh': 'bash', '.cpp': 'cpp', '.hpp': 'cpp', '.cu': 'cpp'}


class Pages:
    """The folder that MkDocs reads.

    Args:
        folder: It is emptied.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self.done: set[Path] = set()
        self.problems: list[str] = []

    def add(self, source: Path, name: str) -> None:
        """Add a page, and all that it links to."""
        if source in self.done:
            return
        self.done.add(source)
        text = outside_code(source.read_text('utf-8'), render_math)
        self.write(name, outside_code(text, lambda part: self.follow_all(source, part)))

    def follow_all(self, page: Path, text: str) -> str:
        """Follow the links of a text."""
        return LINK.sub(lambda link: self.follow(page, *link.groups()), text)

    def follow(self, page: Path, target: str, anchor: str) -> str:
        """Add what a page links to, and return the link to it."""
        path = Path(os.path.normpath(page.parent / target))
        if not path.exists():
            self.problems.append(f'{page.relative_to(ROOT)} links to {target}, which does not exist')
            return target + anchor
        name = str(path.relative_to(ROOT))
        if path.is_dir():
            self.add_folder(path, name)
            return f'{target.rstrip("/")}/index.md'
        if path.suffix == '.md':
            self.add(path, name)
        elif path.suffix in LANGUAGES:
            self.write(f'{name}.md', f'# {name}\n\n```{LANGUAGES[path.suffix]}\n{path.read_text("utf-8")}\n```\n')
            return f'{target}.md'
        else:
            self.write(name, path.read_bytes())
        return target + anchor

    def add_folder(self, path: Path, name: str) -> None:
        """Add a page that lists the files of a folder."""
        if path in self.done:
            return
        self.done.add(path)
        files = sorted(file for file in path.iterdir() if file.suffix in LANGUAGES)
        lines = [f'- [{file.name}]({self.follow(path / "index.md", file.name, "")})' for file in files]
        self.write(f'{name}/index.md', f'# {name}\n\n' + '\n'.join(lines) + '\n')

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def on_page_content(html: str, **_) -> str:
    """Show reStructuredText in docstrings as HTML; MkDocs calls this for each page."""
    return REST_LINK.sub(r'<a href="\2">\1</a>', ROLE.sub('', html))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Change a text, but not its code."""
    parts = CODE.split(text)
    return ''.join(part if index % 2 else change(part) for index, part in enumerate(parts))


def render_math(text: str) -> str:
    """Turn the equations between dollars into MathML."""
    return MATH.sub(lambda found: convert(found[1] or found[2], display='block' if found[1] else 'inline'), text)


def main() -> None:
    """Build the site; exit with 1 if a link is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'build' / 'site', help='folder to write (%(default)s)')
    out = parser.parse_args().out.resolve()
    pages = Pages(ROOT / 'build' / 'pages')
    for page in (ROOT / 'README.md', ROOT / 'CHANGELOG.md', *sorted((ROOT / 'docs').glob('*.md'))):
        pages.add(page, str(page.relative_to(ROOT)))
    for page in sorted((SITE / 'reference').glob('*.md')):
        pages.add(page, f'reference/{page.name}')
    if pages.problems:
        sys.exit('\n'.join(pages.problems))
    os.environ.setdefault('NO_MKDOCS_2_WARNING', '1')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '-f', str(SITE / 'mkdocs.yml')]
    if subprocess.run([*command, '--site-dir', str(out)]).returncode:
        sys.exit('The site was not built; see above.')
    print(f'written to {out / "index.html"}')


if __name__ == '__main__':
    main()
