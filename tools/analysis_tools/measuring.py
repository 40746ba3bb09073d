"""What the benchmarks share: boxes of a likely size, the process's memory, the machine in words, tables in a file."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import mmdet
import torch
from mmengine.config import Config
from torch import Tensor


def load_installed_config(name: str) -> Config:
    """Load a configuration that MMDetection carries, named as under ``mmdet/.mim/configs``."""
    return Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / name)


def draw_sides(instances: int, generator: torch.Generator) -> Tensor:
    """Draw widths and heights ``(N, 2)`` of boxes, log-normal around 110 input pixels."""
    return 110 * torch.exp(0.6 * torch.randn(instances, 2, generator=generator))


def read_memory(field: str) -> int:
    """Read the process's memory in bytes: ``VmRSS`` now, ``VmHWM`` at most so far."""
    return 1024 * int(re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1])


def describe_machine(device: str) -> str:
    """Describe machine and software in a line."""
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
    """Say how busy the machine is with other work, which stretches every time here."""
    return f' Load average {os.getloadavg()[1]:.1f} over the 5 minutes before.'


def write_section(path: Path, title: str, text: str) -> None:
    """Put a section into a Markdown file, in place of the one of that title if there is one."""
    parts = re.split(r'^(?=## )', path.read_text() if path.exists() else '# Benchmarks\n\n', flags=re.MULTILINE)
    section = f'## {title}\n\n{text.strip()}\n'
    at = [i for i, part in enumerate(parts) if part.startswith(f'## {title}\n')]
    if at:
        parts[at[0]] = section if at[0] == len(parts) - 1 else section + '\n'
    else:
        parts.append(('' if parts[-1].endswith('\n\n') else '\n') + section)
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(parts))
