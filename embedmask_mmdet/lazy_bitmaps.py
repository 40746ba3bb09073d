"""Masks that are stored in another form, and decoded whenever code uses them like a bool tensor or array."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

COMPARISONS = ('lt', 'le', 'gt', 'ge', 'eq', 'ne')
BINARY_OPERATORS = ('and_', 'or_', 'xor', 'add', 'sub', 'mul', 'truediv', 'matmul')


class LazyBitmaps:
    """Base class of masks that act like a bool tensor. Subclasses implement ``shape``, ``numpy`` and ``_place``.

    Torch's and numpy's functions, operators and all methods of a tensor decode the masks at each use. So do the methods
    that arrays and MMDetection's masks have in addition: ``astype``, ``to_ndarray`` and ``to_tensor``. Nothing changes
    the masks in place.
    """

    dtype = torch.bool
    # Comparisons give tensors, so masks are no keys of a dict, as arrays are none.
    __hash__ = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the bitmaps."""
        raise NotImplementedError

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """Decode the masks to a bool array; ``force`` changes nothing, because there is always a copy on the CPU."""
        raise NotImplementedError

    def _place(self, device: torch.device) -> LazyBitmaps:
        """Return the masks, still not decoded, for bitmaps on another device."""
        raise NotImplementedError

    def to(self, *args, **kwargs) -> LazyBitmaps | Tensor:
        """Do what ``Tensor.to`` does; only another dtype decodes the masks."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype in (None, torch.bool):
            return self if device in (None, self.device) else self._place(device)
        return self.to_tensor(dtype, device)

    def cpu(self) -> LazyBitmaps:
        """Return the masks with bitmaps on the CPU."""
        return self.to('cpu')

    def cuda(self, device: Any = 'cuda', **kwargs) -> LazyBitmaps:
        """Return the masks with bitmaps on a GPU."""
        return self.to(torch.device(device), **kwargs)

    def detach(self) -> LazyBitmaps:
        """Return the masks, which have no gradient."""
        return self

    @property
    def ndim(self) -> int:
        """Number of dimensions of the bitmaps."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Return the shape of the bitmaps, or its entry ``dim``."""
        return self.shape if dim is None else self.shape[dim]

    def astype(self, dtype: Any, **kwargs) -> np.ndarray:
        """Decode the masks to an array of ``dtype``."""
        return self.numpy().astype(dtype, **kwargs)

    def to_ndarray(self) -> np.ndarray:
        """Decode the masks to a uint8 array, as ``BitmapMasks.to_ndarray`` does."""
        return self.astype(np.uint8)

    def to_tensor(self, dtype: torch.dtype = torch.bool, device: Any = None) -> Tensor:
        """Decode the masks to a tensor.

        Args:
            dtype: Of the tensor.
            device: Of the tensor. None: that of the masks.
        """
        return torch.from_numpy(self.numpy()).to(device=self.device if device is None else device, dtype=dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy() if dtype is None else self.astype(dtype)

    def __dlpack__(self, **kwargs) -> Any:
        # `torch.as_tensor` looks for this before it takes the masks for a list of numbers.
        return self.to_tensor().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple:
        return self.to_tensor().__dlpack_device__()

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling look for private names before there is anything to decode.
        if name.startswith('_') or not hasattr(Tensor, name):
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return getattr(self.to_tensor(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*tree_map(decode, args), **tree_map(decode, kwargs or {}))


def decode(value: Any) -> Any:
    """Decode lazy bitmaps to a tensor; return anything else as it is."""
    return value.to_tensor() if isinstance(value, LazyBitmaps) else value


def _make_operator(function: Any) -> Any:
    def operate(self: LazyBitmaps, *others: Any) -> Any:
        return function(self.to_tensor(), *(decode(other) for other in others))

    return operate


def _make_reflected(function: Any) -> Any:
    def operate(self: LazyBitmaps, other: Any) -> Any:
        return function(other, self.to_tensor())

    return operate


# Python looks operators up in classes, so `__getattr__` is not enough.
for _name in COMPARISONS:
    setattr(LazyBitmaps, f'__{_name}__', _make_operator(getattr(operator, _name)))
for _name in BINARY_OPERATORS:
    _function = getattr(operator, _name)
    setattr(LazyBitmaps, f'__{_name.strip("_")}__', _make_operator(_function))
    setattr(LazyBitmaps, f'__r{_name.strip("_")}__', _make_reflected(_function))
LazyBitmaps.__invert__ = _make_operator(operator.invert)
