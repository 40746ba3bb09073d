"""Where configs, tools and demos are: in the repository, or else in the installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent
# MMDetection's wheel keeps its configs and tools in such a folder too.
INSTALLED = PACKAGE / '.mim'
IN_REPOSITORY = (REPOSITORY / 'ops').is_dir() and (REPOSITORY / 'configs').is_dir()
CONFIGS = REPOSITORY / 'configs' if IN_REPOSITORY else INSTALLED / 'configs' / 'embedmask'
CHECKPOINTS = PACKAGE / 'checkpoints'
SCRIPTS = REPOSITORY if IN_REPOSITORY else INSTALLED


def list_configs() -> dict[str, Path]:
    """List the configs of this package that can be trained or tested, by the name of the file."""
    return {path.name: path for path in sorted(CONFIGS.rglob('*.py')) if '_base_' not in path.parts}
