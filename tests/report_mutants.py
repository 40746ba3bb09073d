"""Print what `make mutants` found: the diff of each mutant that no test noticed, then counts for each module."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

NOTICED = ('killed', 'timeout', 'segfault')


def checked_mutants() -> Iterator[tuple[Path, str, str]]:
    """Yield file, name and status of each mutant that was run."""
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for name, exit_code in data.exit_code_by_key.items():
            if exit_code is not None:
                yield path, name, status_by_exit_code[exit_code]


def print_table(counts: dict[str, Counter]) -> None:
    """Print a line of counts for each module; ``total`` comes last."""
    columns = sorted(counts['total'])
    width = max(map(len, counts))
    print(f'{"":{width}}  noticed  ' + '  '.join(columns))
    for module, statuses in counts.items():
        noticed = sum(statuses[status] for status in NOTICED) / max(statuses.total(), 1)
        print(f'{module:{width}}  {noticed:7.1%}  ' + '  '.join(f'{statuses[c]:{len(c)}}' for c in columns))


def main() -> None:
    """Print the diffs and the table."""
    counts = defaultdict(Counter)
    total = Counter()
    for path, name, status in checked_mutants():
        counts[str(path)][status] += 1
        total[status] += 1
        if status not in NOTICED:
            print(f'# {name}: {status}\n{get_diff_for_mutant(name, path=path)}\n')
    print_table({**counts, 'total': total})


if __name__ == '__main__':
    main()
