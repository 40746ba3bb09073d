"""Make a checkpoint small enough to share: the weights as float16, with config and classes, and nothing else.

    python tools/model_converters/publish_model.py work_dirs/run/iter_450.pth model.pth

All programs load it like the original, as float32. Training cannot be resumed from it, because the optimizer's state is
left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from embedmask_mmdet.cli.launch import fail, find_checkpoint
from embedmask_mmdet.converters.publish import publish
from embedmask_mmdet.errors import CheckpointError, InputError


def main() -> None:
    """Write the file, or end with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', metavar='SRC', help='checkpoint that training wrote')
    parser.add_argument('dst', metavar='DST', type=Path, help='checkpoint to write')
    args = parser.parse_args()
    src, dst = Path(find_checkpoint(args.src)), args.dst
    if dst.exists():
        fail(f'DST {dst} exists. Remove it, or choose another name.')
    if not dst.parent.is_dir():
        fail(f'the folder {dst.parent} of DST does not exist. Make it, or choose another.')
    try:
        publish(src, dst)
    except (CheckpointError, InputError) as error:
        fail(str(error))
    sizes = [path.stat().st_size / 1e6 for path in (src, dst)]
    print(f'wrote {dst}, {sizes[1]:.1f} MB of {sizes[0]:.1f} MB')


if __name__ == '__main__':
    main()
