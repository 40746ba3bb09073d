"""The machine that figures were measured on, and the memory of this process."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import mmdet
import torch


def read_memory(field: str) -> int:
    """Read the memory of this process.

    Args:
        field: ``'VmRSS'`` for the present amount, ``'VmHWM'`` for the highest since :func:`reset_peak`.

    Returns:
        Bytes.
    """
    return 1024 * int(re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1])


def reset_peak(device: str) -> int:
    """Start to measure the highest amount of memory on a device.

    Args:
        device: ``'cpu'``, or a CUDA device.

    Returns:
        The present amount in bytes.
    """
    if device == 'cpu':
        Path('/proc/self/clear_refs').write_text('5')
        return read_memory('VmRSS')
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def read_growth(device: str, before: int) -> int:
    """Return by how many bytes memory grew at most.

    Args:
        device: As in :func:`reset_peak`.
        before: What that returned.
    """
    peak = read_memory('VmHWM') if device == 'cpu' else torch.cuda.max_memory_allocated()
    # Linux counts pages per processor and adds them up late, so a peak can be a little below the amount before it.
    return max(0, peak - before)


def describe_machine(device: str) -> str:
    """Describe processor and software in one sentence.

    Args:
        device: ``'cpu'``, or a CUDA device, whose name is added.
    """
    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        cpu = re.search(r'model name\s*:\s*(.+)', Path('/proc/cpuinfo').read_text())[1].strip()
    gpu = '' if device == 'cpu' else f', {torch.cuda.get_device_name()}'
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f'{cpu} ({capability}), {torch.get_num_threads()} threads{gpu}; Python {platform.python_version()}, '
        f'torch {torch.__version__}, mmdet {mmdet.__version__}.'
    )


def describe_load() -> str:
    """Describe how busy the machine was: other work makes every measured time longer."""
    return f' Load average {os.getloadavg()[1]:.1f} over the 5 minutes before.'
