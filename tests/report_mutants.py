"""Print what `make mutants` found: counts for each module, then each mutant that no test noticed, as a diff."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict

NOTICED = ('killed', 'timeout', 'segfault')


def run_mutmut(*arguments: str) -> str:
    """Return the output of one of mutmut's commands."""
    command = [sys.executable, '-m', 'mutmut', *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read_statuses() -> dict[str, str]:
    """Return the status of each mutant that was checked, by its name."""
    lines = (line.strip().rpartition(': ') for line in run_mutmut('results', '--all=true').splitlines())
    return {name: status for name, _, status in lines if name and status != 'not checked'}


def count_by_module(statuses: dict[str, str]) -> dict[str, Counter]:
    """Count the statuses of each module's mutants, and of all as ``total``."""
    counts = defaultdict(Counter)
    for name, status in statuses.items():
        module = name.rpartition('.')[0]
        counts[module][status] += 1
        counts['total'][status] += 1
    return counts


def main() -> None:
    """Print the table and the diffs."""
    statuses = read_statuses()
    for name, status in statuses.items():
        if status not in NOTICED:
            print(run_mutmut('show', name))
    counts = count_by_module(statuses)
    columns = sorted(counts['total'])
    width = max(map(len, counts), default=0)
    print(f'{"module":{width}}  noticed  ' + '  '.join(columns))
    for module, of_module in counts.items():
        noticed = sum(of_module[status] for status in NOTICED) / sum(of_module.values())
        numbers = '  '.join(f'{of_module[column]:{len(column)}}' for column in columns)
        print(f'{module:{width}}  {noticed:7.1%}  {numbers}')


if __name__ == '__main__':
    main()
