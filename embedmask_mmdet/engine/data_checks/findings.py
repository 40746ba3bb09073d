"""What a check finds, and what becomes of it: an error stops the program, a warning is logged."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from mmengine.logging import print_log

from embedmask_mmdet.errors import InputError

ERROR, WARNING = 'error', 'warning'


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with the data.

    Attributes:
        severity: ``'error'`` if training would fail or learn nothing right, otherwise ``'warning'``.
        message: What is wrong, with file and image or annotation, and what to do. One line.
        ann_file: Annotation file; empty if the config is wrong.
        images: File names of the images.
        annotations: IDs of the annotations.
    """

    severity: str
    message: str
    ann_file: str = ''
    images: tuple[str, ...] = ()
    annotations: tuple = ()


def error(message: str, images: Sequence[str] = (), annotations: Sequence = (), ann_file: str = '') -> Finding:
    """Make a finding that stops training."""
    return Finding(ERROR, message, ann_file, tuple(images), tuple(annotations))


def warning(message: str, images: Sequence[str] = (), annotations: Sequence = (), ann_file: str = '') -> Finding:
    """Make a finding that is logged."""
    return Finding(WARNING, message, ann_file, tuple(images), tuple(annotations))


_collected: ContextVar[list[Finding] | None] = ContextVar('collected', default=None)


@contextlib.contextmanager
def collect_findings() -> Iterator[list[Finding]]:
    """Give a list that gets all findings of the ``with`` block; warnings are not logged there."""
    findings: list[Finding] = []
    token = _collected.set(findings)
    try:
        yield findings
    finally:
        _collected.reset(token)


def summarize_errors(errors: Sequence[Finding]) -> str:
    """Say the first error, and how to see the others."""
    if len(errors) == 1:
        return errors[0].message
    return (
        f'{errors[0].message} ({len(errors) - 1} more found; `python tools/misc/check_data.py CONFIG` lists all of '
        'them.)'
    )


def report(findings: Iterable[Finding]) -> None:
    """Log the warnings, or only collect them in :func:`collect_findings`.

    Raises:
        InputError: If there are errors.
    """
    findings = list(findings)
    collected = _collected.get()
    if collected is not None:
        collected += findings
    else:
        for finding in findings:
            if finding.severity == WARNING:
                print_log(finding.message, 'current', logging.WARNING)
    errors = [finding for finding in findings if finding.severity == ERROR]
    if errors:
        raise InputError(summarize_errors(errors))
