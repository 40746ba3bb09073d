"""Configs of the models that are measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mmdet
from mmengine.config import Config
from mmengine.hub import get_config

from embedmask_mmdet.errors import InputError

INSTALLED_PREFIX = 'mmdet::'


def load_installed_config(name: str) -> Config:
    """Load a config that MMDetection's wheel contains, by its path under ``mmdet/.mim/configs``."""
    return Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / name)


def load_config(config: str) -> Config:
    """Load a config file, or an installed one by a name like ``mmdet::folder/name.py``.

    Raises:
        InputError: If the installed MMDetection has no config of this name.
    """
    if not config.startswith(INSTALLED_PREFIX):
        return Config.fromfile(config)
    try:
        return get_config(config)
    except FileNotFoundError as error:
        raise InputError(f'the installed mmdet has no config {config.removeprefix(INSTALLED_PREFIX)}') from error


def walk_dicts(node: object) -> Iterator[dict]:
    """Yield every dict inside a config, the outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from walk_dicts(child)


def drop_pretrained(cfg: Config) -> None:
    """Remove pretrained weights from a model's config, so that building it downloads nothing."""
    for part in walk_dicts(cfg.model):
        if isinstance(part.get('init_cfg'), dict) and part['init_cfg'].get('type') == 'Pretrained':
            part['init_cfg'] = None
