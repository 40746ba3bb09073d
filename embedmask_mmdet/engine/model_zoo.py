"""Let MMEngine and MMDetection find the configs of this package by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import load
from mmengine.infer import BaseInferencer

from embedmask_mmdet.locations import CHECKPOINTS, CONFIGS

_read_models = BaseInferencer._get_models_from_metafile


def find_weights(name: str) -> str | None:
    """Return the checkpoint of a config that is in this package, if there is one."""
    path = CHECKPOINTS / f'{name}.pth'
    return str(path) if path.is_file() else None


def list_models() -> list[dict[str, Any]]:
    """Read the metafile; ``Config`` becomes an absolute path, and ``Weights`` a file of this package or None."""
    models = load(CONFIGS / 'metafile.yml')['Models']
    for model in models:
        model['Config'] = str(CONFIGS / model['Config'].rpartition('/')[2])
        model['Weights'] = find_weights(model['Name'])
    return models


def read_models_of_both(folder: str) -> Iterator[dict[str, Any]]:
    """Yield the models of MMDetection, or of whatever package is asked for, then ours."""
    yield from _read_models(folder)
    yield from list_models()


def register_configs() -> None:
    """Make ``embedmask_mmdet::embedmask/NAME.py`` a base config, and names of configs models of ``DetInferencer``."""
    # MMEngine looks for `.mim` in the folder of this module. Given the name of the distribution, it would look in
    # site-packages, where an editable install has nothing.
    MODULE2PACKAGE['embedmask_mmdet'] = 'embedmask_mmdet.locations'
    BaseInferencer._get_models_from_metafile = staticmethod(read_models_of_both)
