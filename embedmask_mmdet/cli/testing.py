"""MMDetection's ``tools/test.py`` that also writes result files for the COCO server."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config
from mmengine.dist import is_main_process

from embedmask_mmdet.cli.launch import add_cfg_options, fail, load_installed, parse_args, run
from embedmask_mmdet.fileio import write_atomically

HELP = {
    '--out': 'NAME.pkl: dump predictions to this file, as MMDetection does. NAME.json: write COCO result files '
    'NAME.bbox.json and NAME.segm.json, in the format of the COCO server (zip one to submit it).',
    '--tta': 'test-time augmentation: merge the detections and masks of several scales and flips',
}
FORMAT_ONLY_HELP = 'write the files of `--out NAME.json` and do not evaluate: for images without annotations'


class TestArgumentParser(argparse.ArgumentParser):
    """The parser of MMDetection's tool with ``--format-only`` and more help."""

    def add_argument(self, *names, **options) -> argparse.Action:
        """Add one of MMDetection's arguments, with our help if there is one."""
        return super().add_argument(*names, **{**options, 'help': HELP.get(names[0], options.get('help'))})

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:
        """Parse MMDetection's arguments and ours."""
        self.add_argument('--format-only', action='store_true', help=FORMAT_ONLY_HELP)
        return super().parse_args(*args, **kwargs)


def check_out(args: argparse.Namespace) -> None:
    """Make the folder of ``--out``; end the program if a file of this name cannot be written."""
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
    """Return the key of the COCO metric in the config, as in ``--cfg-options``, and its settings."""
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    evaluator = cfg.get('test_evaluator') or []
    is_list = isinstance(evaluator, list)
    for i, metric in enumerate(evaluator if is_list else [evaluator]):
        metric_class = METRICS.get(metric.type) if isinstance(metric.type, str) else metric.type
        if isinstance(metric_class, type) and issubclass(metric_class, CocoMetric):
            return f'test_evaluator.{i}' if is_list else 'test_evaluator', metric
    return None


def request_result_files(args: argparse.Namespace) -> str | None:
    """Set up the COCO metric to write the files of ``--out NAME.json``.

    Returns:
        NAME, or the prefix of the result files that the config asks for; None if no such files will be written.
    """
    found = find_coco_metric(args)
    if not (args.out and args.out.endswith('.json')):
        return found and found[1].get('outfile_prefix')
    if found is None:
        fail(f'--out {args.out} needs a CocoMetric in test_evaluator of {args.config}, which has none')
    key, metric = found
    prefix = args.out.removesuffix('.json')
    options = dict(outfile_prefix=prefix, format_only=args.format_only or metric.get('format_only', False))
    add_cfg_options(args, {f'{key}.{name}': value for name, value in options.items()})
    args.out = None  # MMDetection's own option writes dumps only
    return prefix


def remove_boxes(path: Path) -> None:
    """Remove the boxes from a result file of masks: COCO's API would take the size of an instance from its box."""
    results = json.loads(path.read_text())
    for result in results:
        result.pop('bbox', None)
    write_atomically(path, json.dumps(results))


def test() -> None:
    """Run MMDetection's ``tools/test.py`` with the command line of this program."""
    tool = load_installed('test.py')
    tool.argparse = SimpleNamespace(ArgumentParser=TestArgumentParser)
    args = parse_args(tool)
    check_out(args)
    prefix = request_result_files(args)
    run(tool, args)
    if prefix and is_main_process():
        mask_results = Path(f'{prefix}.segm.json')
        remove_boxes(mask_results)
        print(f'wrote {prefix}.bbox.json and {mask_results}')
