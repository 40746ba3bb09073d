"""Test a model: MMDetection's installed ``tools/test.py`` with all its arguments, from any folder.

``--out`` and ``--format-only`` are more than MMDetection's: result files as the COCO server takes them.
"""

from __future__ import annotations

import argparse
import json
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


def find_coco_metric(args: argparse.Namespace) -> tuple[str, dict] | None:
    """Return the name that the config's COCO metric has as an option, and its settings."""
    from mmdet.evaluation import CocoMetric
    from mmdet.registry import METRICS
    from mmengine.config import Config

    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    evaluator = cfg.get('test_evaluator') or []
    several = isinstance(evaluator, list)
    for i, metric in enumerate(evaluator if several else [evaluator]):
        kind = METRICS.get(metric.type) if isinstance(metric.type, str) else metric.type
        if isinstance(kind, type) and issubclass(kind, CocoMetric):
            return f'test_evaluator.{i}' if several else 'test_evaluator', metric
    return None


def request_result_files(args: argparse.Namespace) -> str | None:
    """Have the COCO metric write what ``--out NAME.json`` asks for; return the start of the files' names.

    A config may ask for files too.
    """
    found = find_coco_metric(args)
    if not (args.out and args.out.endswith('.json')):
        return found and found[1].get('outfile_prefix')
    if found is None:
        fail(f'--out {args.out} needs a CocoMetric in test_evaluator of {args.config}, which has none')
    prefix = args.out.removesuffix('.json')
    options = dict(outfile_prefix=prefix, format_only=args.format_only or found[1].get('format_only', False))
    run_installed.add_cfg_options(args, {f'{found[0]}.{name}': value for name, value in options.items()})
    args.out = None  # MMDetection's own is for dumps alone
    return prefix


def leave_out_boxes(path: Path) -> None:
    """Rewrite a result file of masks as COCO wants it.

    Its API would take an instance's size from a box, where there is one, and not from the mask.
    """
    from embedmask_mmdet.fileio import write_atomically

    results = json.loads(path.read_text())
    for result in results:
        result.pop('bbox', None)
    write_atomically(path, json.dumps(results))


def main() -> None:
    """Test with the arguments of this program."""
    tool = run_installed.import_tool('test.py')
    tool.argparse = SimpleNamespace(ArgumentParser=TestArgumentParser)
    args = run_installed.parse_args(tool)
    check_out(args)
    prefix = request_result_files(args)
    run_installed.run(tool, args)

    from mmengine.dist import is_main_process

    if prefix and is_main_process():
        masks = Path(f'{prefix}.segm.json')
        leave_out_boxes(masks)
        print(f'wrote {prefix}.bbox.json and {masks}')


if __name__ == '__main__':
    main()
