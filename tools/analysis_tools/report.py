"""Write an HTML page that shows what a model does wrong, what that costs, and which labels are probably wrong.

    python tools/analysis_tools/report.py CONFIG CHECKPOINT --out report.html   # on the images of test_dataloader
    python tools/analysis_tools/report.py CONFIG --out data.html                # about the data alone

The page is one file without anything from elsewhere. It works with every instance segmentation model of MMDetection
and annotations in COCO's format.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction

from embedmask_mmdet.analysis.report.data_page import NUM_CROPS, write_data_page
from embedmask_mmdet.analysis.report.model_page import write_model_page
from embedmask_mmdet.cli.launch import fail, find_checkpoint, find_config
from embedmask_mmdet.errors import CheckpointError, InputError


def parse_args() -> argparse.Namespace:
    """Parse the command line and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint', nargs='?', help='without it, the page is about the data alone')
    parser.add_argument('--out', type=Path, default=Path('report.html'), help='file to write (default: report.html)')
    parser.add_argument(
        '--results', type=Path, help="masks detected earlier on the same images, in COCO's format for results"
    )
    parser.add_argument(
        '--crops', type=int, default=NUM_CROPS, help=f'highest number of pictures of a kind (default: {NUM_CROPS})'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, replaces a setting of the config'
    )
    args = parser.parse_args()
    if args.crops < 0:
        parser.error('--crops must not be negative')
    args.config = find_config(args.config)
    if args.checkpoint:
        args.checkpoint = find_checkpoint(args.checkpoint)
    return args


def main() -> None:
    """Write the page."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    try:
        if args.checkpoint or args.results:
            write_model_page(cfg, args.out, args.checkpoint, args.results, args.crops)
        else:
            write_data_page(cfg, args.out, num_crops=args.crops)
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except OSError as error:
        fail(f'{error.filename}: {error.strerror}' if error.filename else str(error))
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
