"""Test a model: MMDetection's installed ``tools/test.py`` with all its arguments, from any folder.

``--out`` and ``--format-only`` are more than MMDetection's: result files as the COCO server takes them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import run_installed
from run_installed import fail

HELP = {
    '--out': 'NAME.pkl: dump predictions to this file, as MMDetection does. NAME.json: write COCO result files '
    'NAME.bbox.json and NAME.segm.json, each as the COCO server takes it (zip one to submit it).',
    '--tta': 'test-time augmentation: merge the detections and masks of several scales and flips',
}


class TestArgumentParser(argparse.ArgumentParser):
    """The parser of MMDetection's tool, told of what is added here."""

    def add_argument(self, *names, **options) -> argparse.Action:
        """Add one of MMDetection's arguments, with our help where it does more."""
        return super().add_argument(*names, **{**options, 'help': HELP.get(names[0], options.get('help'))})

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:
        """Parse MMDetection's arguments and ours."""
        help = 'write the files of `--out NAME.json` and evaluate nothing: for images without annotations'
        self.add_argument('--format-only', action='store_true', help=help)
        return super().parse_args(*args, **kwargs)


def check_out(args: argparse.Namespace) -> None:
    """End with a message if ``--out`` cannot be written; its folder is made."""
    if args.format_only and not (args.out and args.out.endswith('.json')):
        fail('--format-only writes COCO result files: say where with --out NAME.json')
    if args.out is None:
        return
    if not args.out.endswith(('.pkl', '.pickle', '.json')):
        fail(f'--out {args.out} must end in .json for COCO result files, or in .pkl for a dump of predictions')
    folder = Path(args.out).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        fail(f'--out {args.out} cannot be written to {folder}: {error.strerror}')


def coco_metric_key(args: argparse.Namespace) -> str:
    """Find the config's COCO metric, as an option's name."""
    from mmdet.evaluation import CocoMetric
    from mmdet.registry import METRICS
    from mmengine.config import Config

    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    evaluator = cfg.get('test_evaluator') or {}
    metrics = (
        {'test_evaluator': evaluator}
        if isinstance(evaluator, dict)
        else {f'test_evaluator.{i}': metric for i, metric in enumerate(evaluator)}
    )
    types = {key: metric.get('type') for key, metric in metrics.items()}
    for key, kind in types.items():
        metric_class = METRICS.get(kind) if isinstance(kind, str) else kind
        if isinstance(metric_class, type) and issubclass(metric_class, CocoMetric):
            return key
    fail(f'--out {args.out} needs a CocoMetric in test_evaluator, which has {", ".join(map(str, types.values()))}')


def leave_out_boxes(path: Path) -> None:
    """Rewrite a result file of masks as COCO wants it.

    Its API would take an instance's size from a box, where there is one, and not from the mask.
    """
    results = json.loads(path.read_text())
    for result in results:
        result.pop('bbox', None)
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(json.dumps(results))
    os.replace(partial, path)


def run_with_coco_results(tool: object, args: argparse.Namespace) -> None:
    """Test, and write the files of ``--out NAME.json``."""
    prefix = args.out.removesuffix('.json')
    key = coco_metric_key(args)
    options = {f'{key}.outfile_prefix': prefix}
    if args.format_only:
        options[f'{key}.format_only'] = True
    run_installed.add_cfg_options(args, options)
    args.out = None  # MMDetection's own is for dumps alone
    run_installed.run(tool, args)

    from mmengine.dist import is_main_process

    if is_main_process():
        written = [path for path in (Path(f'{prefix}.{kind}.json') for kind in ('bbox', 'segm')) if path.is_file()]
        if len(written) == 2:
            leave_out_boxes(written[1])
        print('wrote', ' and '.join(map(str, written)))


def main() -> None:
    """Test with the arguments of this program."""
    tool = run_installed.import_tool('test.py')
    tool.argparse = SimpleNamespace(ArgumentParser=TestArgumentParser)
    args = run_installed.parse_args(tool)
    check_out(args)
    if args.out and args.out.endswith('.json'):
        run_with_coco_results(tool, args)
    else:
        run_installed.run(tool, args)


if __name__ == '__main__':
    main()
