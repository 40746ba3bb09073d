"""Compute the metrics of an ONNX file on a config's test set, with MMDetection's dataset and evaluator.

    python tools/deployment/test_onnx.py CONFIG model.onnx

The file takes images, as `export_onnx.py` writes it without --input tensor and --raw.
Compare the figures with those of `tools/test.py CONFIG CHECKPOINT`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdet.utils import register_all_modules
from mmengine.config import Config, DictAction

from embedmask_mmdet.cli.launch import fail, fail_missing, find_config
from embedmask_mmdet.deployment.evaluation import evaluate
from embedmask_mmdet.errors import InputError


def parse_args() -> argparse.Namespace:
    """Parse the command line and check that the config exists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('model', type=Path, help='ONNX file')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='key=value, replaces a setting of the config'
    )
    args = parser.parse_args()
    args.config = find_config(args.config)
    return args


def main() -> None:
    """Print the metrics."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    register_all_modules()
    try:
        metrics = evaluate(cfg, args.model)
    except InputError as error:
        fail(str(error))
    except FileNotFoundError as error:
        fail_missing(error)
    for name, value in metrics.items():
        print(f'{name}: {value}')


if __name__ == '__main__':
    main()
