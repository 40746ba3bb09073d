"""The hook that checks whether optional packages can be used, before an epoch is trained that they cannot evaluate."""

from __future__ import annotations

import importlib
import inspect
import re

import numpy as np
from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from embedmask_mmdet.errors import InputError


def check_package(module: str, requirement: str) -> None:
    """Import a module, and check that the installed numpy has everything that the module's source takes from it.

    Args:
        module: Name of the module, such as ``lvis.eval``.
        requirement: What ``pip install`` needs to get a version that works.

    Raises:
        InputError: If the module cannot be imported, or uses names that numpy has removed.
    """
    package = module.partition('.')[0]
    try:
        source = inspect.getsource(importlib.import_module(module))
    except ImportError as error:
        raise InputError(
            f'This config needs the package {package}, which cannot be imported ({error}). '
            f'Run: pip install {requirement}'
        ) from error
    removed = [name for name in re.findall(r'\bnp\.(\w+)', source) if not hasattr(np, name)]
    if removed:
        raise InputError(
            f'The installed package {package} uses np.{removed[0]}, which numpy {np.__version__} has removed. '
            f'Run: pip install {requirement}'
        )


@HOOKS.register_module()
class EmbedMaskPackagesHook(Hook):
    """Checks the packages that a config's datasets or metrics need when the runner is built.

    Args:
        packages: What ``pip install`` needs to get a version that works, by the name of the module that is used.

    Raises:
        InputError: If a module cannot be imported, or uses names that the installed numpy has removed.
    """

    def __init__(self, packages: dict[str, str]) -> None:
        for module, requirement in packages.items():
            check_package(module, requirement)
