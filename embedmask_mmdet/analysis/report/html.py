"""HTML as strings. Text is escaped, because names of classes and files are the user's; ``Html`` is already escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.fileio import write_atomically

GENERATOR = 'embedmask_mmdet report'

STYLE = """
:root { --ink: #1d2330; --soft: #5c6475; --line: #dfe3ea; --back: #f6f7f9; --truth: #1f9d3a; --found: #e8710a; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--back); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 4px 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 4px; }
h3 { font-size: 16px; margin: 20px 0 2px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 16px; margin: 16px 0; }
p { margin: 4px 0 10px; max-width: 75ch; }
p.lead { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0; }
a { color: #1a5fb4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: 14px; vertical-align: bottom; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.cell { text-align: center; min-width: 48px; padding: 4px 6px; }
td.name { overflow-wrap: break-word; }
.costs td:first-child { white-space: nowrap; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 8px; margin: 12px 0; }
.fact { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; }
.fact b { display: block; font-size: 22px; line-height: 1.2; }
.fact span { color: var(--soft); font-size: 14px; }
.paths { color: var(--soft); font-size: 14px; overflow-wrap: anywhere; }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(268px, 100%), 1fr)); }
.grid.charts { grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); }
figure { margin: 0; } .grid + .scroll { margin-top: 14px; }
figure img { display: block; width: 100%; max-width: 356px; height: auto; border-radius: 4px; background: #ccc; }
figcaption { font-size: 13px; line-height: 1.35; color: var(--soft); margin-top: 4px; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
svg { display: block; width: 100%; max-width: 420px; height: auto; font: 12px system-ui, sans-serif; }
.bar { background: var(--found); height: 12px; border-radius: 2px; }
.track { width: 160px; margin-top: 6px; }
.key { display: inline-block; width: 18px; height: 0; border-top: 3px solid; margin: 0 4px 4px 10px; }
.truth { color: var(--truth); } .found { color: var(--found); } .other { color: #aab0bb; }
.error { color: #b3261e; font-weight: 600; } .warning { color: #8a5a00; font-weight: 600; }
details { margin: 8px 0; } summary { cursor: pointer; color: #1a5fb4; }
@media (max-width: 600px) {
  body { font-size: 15px; } main { padding: 12px 10px 40px; } section { padding: 12px; }
  h1 { font-size: 21px; } .track { width: 70px; } th, td { padding-right: 8px; }
  .costs th:last-child, .costs td:last-child { display: none; }
}
"""


class Html(str):
    """Text that is HTML already."""


def escape(value: object) -> Html:
    """Escape a value unless it is HTML already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object], separator: str = '\n') -> Html:
    """Escape and join parts."""
    return Html(separator.join(map(escape, parts)))


def element(name: str, *content: object, **attributes: str) -> Html:
    """Make an element; the attribute ``class_`` is written ``class``."""
    written = ''.join(f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items())
    return Html(f'<{name}{written}>{join(content, "")}</{name}>')


def paragraph(*content: object, **attributes: str) -> Html:
    """Make a paragraph."""
    return element('p', *content, **attributes)


def anchor(title: str) -> str:
    """Make the id of a section from its title."""
    return ''.join(letter if letter.isalnum() else '-' for letter in title.lower())


def section(title: str, lead: object, *content: object) -> Html:
    """Make a section.

    Args:
        title: Its title.
        lead: One sentence that says how to read it.
        content: What follows.
    """
    head = element('h2', title), paragraph(lead, class_='lead')
    return element('section', *head, *content, id=anchor(title))


def cell(value: object) -> Html:
    """Make a cell of a table; numbers stand at the right."""
    if value is None:
        return element('td', '-', class_='number')
    if isinstance(value, float):
        return element('td', f'{value:.3f}', class_='number')
    if isinstance(value, int):
        return element('td', f'{value:,}', class_='number')
    if isinstance(value, Html) and value.startswith('<td'):
        return value
    return element('td', value, class_='name')


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> Html:
    """Make a table that scrolls sideways on a small screen. Floats get three decimals, None a dash."""
    numbers = [bool(rows) and (row is None or isinstance(row, (int, float))) for row in (rows[0] if rows else titles)]
    head = [element('th', title, **({'class_': 'number'} if n else {})) for title, n in zip(titles, numbers)]
    body = [element('tr', *map(cell, row)) for row in rows]
    return element('div', element('table', element('tr', *head), *body), class_='scroll')


def facts(values: dict[str, object]) -> Html:
    """Make a row of large numbers with their names."""
    boxes = [
        element('div', element('b', value), element('span', name), class_='fact') for name, value in values.items()
    ]
    return element('div', *boxes, class_='facts')


def figure(source: str, *caption: object, alt: str = '') -> Html:
    """Make a picture with a caption."""
    image = Html(f'<img src="{html.escape(source)}" alt="{html.escape(alt)}" loading="lazy">')
    return element('figure', image, element('figcaption', *caption))


def grid(items: Sequence[object], kind: str = '') -> Html:
    """Arrange pictures in as many columns as fit."""
    return element('div', *items, class_=f'grid {kind}'.strip())


def make_page(title: str, intro: object, sections: Sequence[Html], titles: Sequence[str]) -> str:
    """Make a complete page.

    Args:
        title: Its title.
        intro: What stands above the sections.
        sections: Its sections.
        titles: Their titles, for the links at the top.
    """
    links = [element('a', name, href=f'#{anchor(name)}') for name in titles]
    body = element('main', element('h1', title), intro, element('nav', *links), *sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{GENERATOR}">\n'
        f'<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    )


def check_out(out: str | Path) -> None:
    """Check that a page can be written.

    Raises:
        InputError: If the folder does not exist, or the file is something else than a page from here.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f'{out} cannot be written: there is no folder {out.parent}. Make it, or give another --out.')
    if out.is_dir():
        raise InputError(f'{out} is a folder. Give the name of a file.')
    if out.exists() and GENERATOR.encode() not in out.read_bytes()[:1000]:
        raise InputError(f'{out} exists and is no report, so it is not written over. Give another --out.')


def write_page(out: str | Path, page: str) -> None:
    """Write a page; an older one is replaced.

    Raises:
        InputError: If it cannot be written.
    """
    check_out(out)
    try:
        # Names of files can hold bytes that are no text.
        write_atomically(out, page.encode('utf-8', 'replace'))
    except OSError as error:
        raise InputError(f'{out} cannot be written: {error.strerror}. Give another --out.') from error
