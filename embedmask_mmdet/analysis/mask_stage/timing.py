"""Measure time and memory of methods that take turns."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor

from embedmask_mmdet.analysis.machine import read_growth, reset_peak
from embedmask_mmdet.analysis.mask_stage.methods import OURS, Method
from embedmask_mmdet.analysis.operators import explain_failure

TURN_SECONDS = 0.1


class Cost(NamedTuple):
    """Median milliseconds of a method, and the most bytes that it takes beyond its result."""

    ms: float
    extra_bytes: int


def run_once(method: Method, device: str) -> float:
    """Run a method and return the milliseconds it takes."""
    start = time.perf_counter()
    method()
    if device != 'cpu':
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def warm_up(methods: dict[str, Method]) -> str:
    """Run each method once, and remove those of other models that fail, as they do without operators of mmcv.

    Args:
        methods: Methods by their names.

    Returns:
        A sentence about each that was removed.
    """
    left_out = []
    for name, method in list(methods.items()):
        try:
            method()
        except Exception as error:
            if name.startswith(OURS):
                raise
            left_out.append(explain_failure(name, error))
            del methods[name]
    return ' '.join(left_out)


def run_for(method: Method, device: str, seconds: float) -> list[float]:
    """Run a method at least once, and again until some seconds have passed. Return the milliseconds of each run."""
    until = time.perf_counter() + seconds
    timings = [run_once(method, device)]
    while time.perf_counter() < until:
        timings.append(run_once(method, device))
    return timings


def count_result_bytes(result: object) -> int:
    """Count the bytes of bitmaps or run lengths."""
    return result.numel() if isinstance(result, Tensor) else sum(len(rle['counts']) for rle in result)


def measure_extra_bytes_on_gpu(method: Method) -> int:
    """Measure the most GPU memory that a method takes beyond its result."""
    before = reset_peak('cuda')
    result = method()
    on_device = count_result_bytes(result) if isinstance(result, Tensor) else 0
    return max(0, read_growth('cuda', before) - on_device)


def measure_extra_bytes(method: Method) -> int:
    """Measure the most memory that a method takes beyond its result."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator keeps would hide what the method takes
    before = reset_peak('cpu')
    result = method()
    return max(0, read_growth('cpu', before) - count_result_bytes(result))


def measure_methods(methods: dict[str, Method], device: str, rounds: int) -> dict[str, Cost]:
    """Measure methods that take turns. Fast methods run several times per turn.

    Args:
        methods: Methods by their names.
        device: Device that they compute on.
        rounds: Turns of each method.
    """
    extra, timings = {}, {name: [] for name in methods}
    for name, method in methods.items():
        if name.startswith('kernels'):
            run_once(method, device)  # they take so little that what the first call sets up would count
        extra[name] = measure_extra_bytes(method) if device == 'cpu' else measure_extra_bytes_on_gpu(method)
    for _ in range(rounds):
        for name, method in methods.items():
            timings[name] += run_for(method, device, TURN_SECONDS)
    return {name: Cost(statistics.median(timings[name]), extra[name]) for name in methods}
