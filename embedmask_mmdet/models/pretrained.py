"""Pretrained weights that cannot be downloaded: which ones they are, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.error import URLError

from mmengine.runner.checkpoint import get_external_models
from torch import nn

from embedmask_mmdet.errors import InputError

MODEL_ZOO = 'open-mmlab://'


def find_downloads(model: nn.Module) -> dict[str, str]:
    """Find the addresses of weights that parts of a model are initialized with, by the name of the part."""
    found = {}
    for name, module in model.named_modules():
        init_cfg = getattr(module, 'init_cfg', None)
        checkpoint = init_cfg.get('checkpoint') if isinstance(init_cfg, dict) else None
        if checkpoint and '://' in checkpoint:
            found[name] = checkpoint
    return found


def find_url(checkpoint: str) -> str:
    """Return the URL behind an address of MMEngine's model zoo; other addresses stay as they are."""
    return get_external_models().get(checkpoint.removeprefix(MODEL_ZOO), checkpoint)


@contextlib.contextmanager
def explain_missing_downloads(model: nn.Module) -> Iterator[None]:
    """Turn a download that fails into an error that names the weights.

    Args:
        model: That is initialized.

    Raises:
        InputError: If weights cannot be downloaded, or their address needs a package that is not installed.
    """
    try:
        yield
    except (URLError, ConnectionError, TimeoutError, ModuleNotFoundError) as error:
        downloads = find_downloads(model)
        if not downloads:
            raise
        name, checkpoint = next(iter(downloads.items()))
        raise InputError(
            f'The pretrained weights {checkpoint} of model.{name} cannot be loaded ({error}). Download '
            f'{find_url(checkpoint)} elsewhere and set model.{name}.init_cfg.checkpoint=FILE, or train a small model '
            f'from scratch with model.{name}.init_cfg=None and model.{name}.frozen_stages=-1.'
        ) from error
