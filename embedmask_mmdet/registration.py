"""Register our parts in MMDetection as soon as a program uses it, and import none of it before.

``embedmask_mmdet.runtime`` runs where MMDetection and PyTorch are not installed, or are not wanted for their size.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PARTS = ('embedmask_mmdet.engine', 'embedmask_mmdet.models', 'embedmask_mmdet.datasets.transforms')
# Our parts cannot be imported while one of these packages is only half imported.
WATCHED = ('mmengine', 'mmcv', 'mmdet', 'embedmask_mmdet')


def is_used() -> bool:
    """Return whether the program has imported MMEngine, and MMDetection is installed."""
    return sys.modules.get('mmengine') is not None and importlib.util.find_spec('mmdet') is not None


def register() -> None:
    """Import the parts of this package, which registers them, and lets MMEngine load checkpoints."""
    for part in PARTS:
        importlib.import_module(part)


class RegisterAfterImports(importlib.abc.MetaPathFinder):
    """Registers our parts after the first import of MMEngine, MMCV or MMDetection, before the program goes on."""

    def __init__(self) -> None:
        self.num_unfinished = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module as Python does, with a loader that tells when the import is finished."""
        if fullname.partition('.')[0] not in WATCHED:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, 'find_spec'))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = WatchedLoader(spec.loader, self.watch)
        return spec

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Count an import, and register our parts after it if it is not part of another one."""
        self.num_unfinished += 1
        try:
            yield
        finally:
            self.num_unfinished -= 1
        if self.num_unfinished == 0 and self in sys.meta_path and is_used():
            sys.meta_path.remove(self)
            register()


class WatchedLoader(importlib.abc.Loader):
    """Loads a module in a context. The module keeps its own loader.

    Args:
        loader: Of the module.
        watch: Makes the context.
    """

    def __init__(
        self, loader: importlib.abc.Loader, watch: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self.loader = loader
        self.watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # `python -m` asks for get_code

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the code of the module."""
        module.__loader__ = module.__spec__.loader = self.loader
        with self.watch():
            self.loader.exec_module(module)


def register_when_used() -> None:
    """Register our parts now if the program has imported MMEngine, otherwise as soon as it does."""
    if is_used():
        register()
    else:
        sys.meta_path.insert(0, RegisterAfterImports())
