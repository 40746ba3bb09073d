"""Attribute the time of a model to stages of its inference."""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import nn

STAGES = ('loading', 'backbone and neck', 'heads', 'NMS', 'mask stage', 'encoding', 'other')
UNTIMED = 'untimed'
# The stage of each method of MMDetection's instance segmentors and of ours. The remaining time belongs to "other".
METHODS = {
    'data_preprocessor.forward': 'loading',
    'extract_feat': 'backbone and neck',
    'rpn_head.forward': 'heads',
    'rpn_head.predict_by_feat': 'NMS',
    'roi_head._bbox_forward': 'heads',
    'roi_head.bbox_head.predict_by_feat': 'NMS',
    'roi_head.predict_mask': 'mask stage',
    'bbox_head.forward': 'heads',
    'bbox_head.predict_by_feat': 'NMS',
    'mask_head.forward': 'heads',
    'frame.place': 'mask stage',
    'mask_head.forward_single': 'mask stage',
    'mask_head.predict_by_feat': 'mask stage',
}


class StageClock:
    """Clock that attributes each moment to the innermost stage that runs.

    Args:
        device: On CUDA devices the clock waits for pending work whenever the stage changes.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device != 'cpu'
        self.running: list[str] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.since = 0.0

    def _charge(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    @contextlib.contextmanager
    def run_stage(self, name: str) -> Iterator[None]:
        """Attribute the time inside this context to a stage; :data:`UNTIMED` is left out of tables."""
        self._charge()
        self.running.append(name)
        try:
            yield
        finally:
            self._charge()
            self.running.pop()

    def watch(self, method: Callable, stage: str) -> Callable:
        """Wrap a method so that its time belongs to a stage."""

        @functools.wraps(method)
        def timed(*args, **kwargs):
            with self.run_stage(stage):
                return method(*args, **kwargs)

        return timed

    def take(self) -> dict[str, float]:
        """Return the milliseconds of each stage since the last call."""
        stages = {name: 1e3 * self.seconds[name] for name in STAGES}
        self.seconds.clear()
        return stages


def find_attribute(owner: object, path: str) -> object | None:
    """Return an attribute by its dotted path, or None if it does not exist."""
    try:
        return operator.attrgetter(path)(owner)
    except AttributeError:
        return None


def watch_stages(model: nn.Module, clock: StageClock) -> None:
    """Wrap the methods of a model that :data:`METHODS` names."""
    for path, stage in METHODS.items():
        owner, _, name = path.rpartition('.')
        if method := find_attribute(model, path):
            setattr(find_attribute(model, owner) if owner else model, name, clock.watch(method, stage))
    watch_matrix_nms(model, clock)


def watch_matrix_nms(model: nn.Module, clock: StageClock) -> None:
    """Wrap the NMS of SOLO's mask heads, which is a function that they call between steps of the mask stage."""
    module = sys.modules[type(find_attribute(model, 'mask_head')).__module__]
    if matrix_nms := find_attribute(module, 'mask_matrix_nms'):
        module.mask_matrix_nms = clock.watch(inspect.unwrap(matrix_nms), 'NMS')
