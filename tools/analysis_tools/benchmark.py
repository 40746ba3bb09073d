"""Time whole images, from the file to what the metrics are given, stage by stage, and other models in turn with it.

Without ``--speed-only`` the model is also evaluated, on all images of the test dataset, as ``tools/test.py`` does.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import inspect
import math
import operator
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools'), str(Path(__file__).parent)]

from run_installed import check_checkpoint, check_config, fail, fail_missing, require_mmdet  # noqa: E402

require_mmdet()

import torch  # noqa: E402
from measuring import describe_load, describe_machine, draw_sides, load_installed_config, write_section  # noqa: E402
from mmdet.registry import DATASETS, MODELS  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402
from mmengine.dataset import BaseDataset, pseudo_collate  # noqa: E402
from mmengine.evaluator import Evaluator  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.runner import load_checkpoint, set_random_seed  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from embedmask_mmdet.errors import CheckpointError, InputError  # noqa: E402

SECTION = 'End to end'
STAGES = ('loading', 'backbone and neck', 'heads', 'NMS', 'mask stage', 'encoding', 'other')
# What belongs to which stage, in any of MMDetection's instance segmentors; what is not called here is "other".
METHODS = {
    'data_preprocessor.forward': 'loading',
    'extract_feat': 'backbone and neck',
    'rpn_head.forward': 'heads',
    'rpn_head.predict_by_feat': 'NMS',
    'roi_head._bbox_forward': 'heads',
    'roi_head.bbox_head.predict_by_feat': 'NMS',
    'roi_head.predict_mask': 'mask stage',
    'bbox_head.forward': 'heads',
    'bbox_head.predict_by_feat': 'NMS',
    'mask_head.forward': 'heads',
    'mask_head.forward_single': 'mask stage',
    'mask_head.predict_by_feat': 'mask stage',
}
RIVALS = {
    'mask-rcnn': ('Mask R-CNN', 'mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py'),
    'condinst': ('CondInst', 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py'),
    'solov2': ('SOLOv2', 'solov2/solov2_r50_fpn_1x_coco.py'),
    'yolact': ('YOLACT', 'yolact/yolact_r50_8xb8-55e_coco.py'),
}
CANDIDATES = 10  # class scores above the threshold for each detection that is kept, where their number is fixed
SIDES_AT = 800  # the image's short side for which box sizes are drawn


class StageClock:
    """Shares out time among stages: each moment belongs to the innermost stage that runs.

    Args:
        device: On CUDA devices it waits at each change of stage until everything is done.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device != 'cpu'
        self.running: list[str] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.since = 0.0

    def _charge(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside for a stage; ``'untimed'`` is left out of the table."""
        self._charge()
        self.running.append(name)
        try:
            yield
        finally:
            self._charge()
            self.running.pop()

    def watch(self, method: Callable, name: str) -> Callable:
        """Wrap a method so that its time counts for a stage."""

        @functools.wraps(method)
        def timed(*args, **kwargs):
            with self.stage(name):
                return method(*args, **kwargs)

        return timed

    def take(self) -> dict[str, float]:
        """Return the milliseconds of each stage since the last call."""
        stages = {name: 1e3 * self.seconds[name] for name in STAGES}
        self.seconds.clear()
        return stages


def find(owner: object, path: str) -> object | None:
    """Look up an attribute by its dotted path; None where there is none."""
    try:
        return operator.attrgetter(path)(owner)
    except AttributeError:
        return None


def watch_stages(model: nn.Module, clock: StageClock) -> None:
    """Have a model's stages timed."""
    for path, stage in METHODS.items():
        owner, _, name = path.rpartition('.')
        if method := find(model, path):
            setattr(find(model, owner) if owner else model, name, clock.watch(method, stage))
    module = sys.modules[type(find(model, 'mask_head')).__module__]
    if matrix_nms := find(module, 'mask_matrix_nms'):  # SOLO's heads call it amid the masks
        module.mask_matrix_nms = clock.watch(inspect.unwrap(matrix_nms), 'NMS')


class FixedDetections:
    """Makes a model detect the same number of objects, of a likely size, in every image, whatever its weights.

    As many of the best class scores as it takes pass the threshold; boxes keep their centres and get drawn sizes.

    Args:
        model: The model, its stages timed already.
        clock: What is done here is left out of it.
    """

    def __init__(self, model: nn.Module, clock: StageClock) -> None:
        self.clock = clock
        self.instances = 0
        self.logits: list[Tensor] = []
        self.test_cfgs = [
            module.test_cfg for module in model.modules() if 'score_thr' in (find(module, 'test_cfg') or ())
        ]
        self.head = find(model, 'roi_head.bbox_head') or find(model, 'bbox_head') or model.mask_head
        for name, module in self.head.named_modules():
            if name.rpartition('.')[2] in ('conv_cls', 'fc_cls'):
                module.register_forward_hook(lambda module, args, output: self.logits.append(output))
        self.predict_by_feat = self.head.predict_by_feat
        self.head.predict_by_feat = self._predict_by_feat

    def set_number(self, instances: int) -> None:
        """Set the number of detections in every image from now on."""
        self.instances = instances
        for test_cfg in self.test_cfgs:
            test_cfg.update(max_per_img=instances)
            if 'filter_thr' in test_cfg:  # SOLO's threshold after NMS
                test_cfg.update(filter_thr=0.0)

    def _predict_by_feat(self, *args, batch_img_metas: list[dict], **kwargs) -> list[InstanceData]:
        with self.clock.stage('untimed'):
            threshold = self._threshold(len(batch_img_metas))
            for test_cfg in self.test_cfgs:
                test_cfg.update(score_thr=threshold)
        results_list = self.predict_by_feat(*args, batch_img_metas=batch_img_metas, **kwargs)
        with self.clock.stage('untimed'):
            for results, img_meta in zip(results_list, batch_img_metas):
                results.bboxes = self._resize(results.bboxes, img_meta['img_shape'][:2])
        return results_list

    def _threshold(self, num_imgs: int) -> float:
        if self.head.loss_cls.use_sigmoid:
            scores = [logits.sigmoid().flatten() for logits in self.logits]
        else:
            # Softmax over classes and background, which comes last.
            channels = self.head.num_classes + 1
            scores = [logits.unflatten(1, (-1, channels)).softmax(2)[:, :, :-1].flatten() for logits in self.logits]
        self.logits.clear()
        scores = torch.cat(scores)
        return scores.topk(min(num_imgs * self.instances * CANDIDATES + 1, len(scores))).values[-1].item()

    def _resize(self, bboxes: Tensor, img_shape: tuple[int, int]) -> Tensor:
        sides = draw_sides(len(bboxes), torch.Generator().manual_seed(0)) * min(img_shape) / SIDES_AT
        centres, half = (bboxes[:, :2] + bboxes[:, 2:]) / 2, sides.to(bboxes) / 2
        size = bboxes.new_tensor([img_shape[1], img_shape[0]] * 2)
        return torch.cat([centres - half, centres + half], dim=1).clamp(min=0).minimum(size)


@dataclass
class Contestant:
    """A model with its data, and what was measured of it."""

    name: str
    model: nn.Module
    dataset: BaseDataset
    evaluator: Evaluator
    clock: StageClock
    fixed: FixedDetections | None
    turns: list[dict[str, float]] = field(default_factory=list)
    detections: list[int] = field(default_factory=list)
    input_shapes: set[tuple[int, int]] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop what was measured and collected so far."""
        self.turns.clear()
        self.detections.clear()
        self.input_shapes.clear()
        self.drop_results()

    def drop_results(self) -> None:
        """Drop the detections that the metrics hold."""
        for metric in self.evaluator.metrics:
            metric.results.clear()

    @torch.no_grad()
    def take_turn(self, indices: Sequence[int]) -> None:
        """Do a batch of images from the file to the metrics, and keep its milliseconds an image."""
        clock = self.clock
        clock.take()
        with clock.stage('other'):
            with clock.stage('loading'):
                batch = pseudo_collate([self.dataset[i] for i in indices])
            samples = self.model.test_step(batch)
            with clock.stage('encoding'):
                self.evaluator.process(data_samples=samples, data_batch=batch)
        self.turns.append({stage: ms / len(indices) for stage, ms in clock.take().items()})
        self.detections += [len(sample.pred_instances) for sample in samples]
        self.input_shapes |= {tuple(sample.batch_input_shape) for sample in samples}

    @property
    def totals(self) -> list[float]:
        """Milliseconds an image of each turn."""
        return [sum(turn.values()) for turn in self.turns]


def configs_inside(node: object) -> Iterator[dict]:
    """Go through all dicts of a config."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from configs_inside(child)


def drop_pretrained(cfg: Config) -> None:
    """Have no weights downloaded."""
    for part in configs_inside(cfg.model):
        if isinstance(part.get('init_cfg'), dict) and part['init_cfg'].get('type') == 'Pretrained':
            part['init_cfg'] = None


def rival_config(name: str, ours: Config) -> Config:
    """Give one of MMDetection's models our backbone and our number of classes; its neck, heads and pipeline stay."""
    cfg = load_installed_config(RIVALS[name][1])
    if len(ours.model.neck.in_channels) != len(cfg.model.neck.in_channels):
        fail(f'--against {name} needs a backbone with {len(cfg.model.neck.in_channels)} levels; name a config instead.')
    num_classes = {part['num_classes'] for part in configs_inside(ours.model) if 'num_classes' in part}
    for part in configs_inside(cfg.model):
        if 'num_classes' in part:
            part['num_classes'] = max(num_classes)
    cfg.model.backbone = copy.deepcopy(ours.model.backbone)
    cfg.model.neck.in_channels = ours.model.neck.in_channels
    return cfg


def enter(
    name: str, cfg: Config, checkpoint: str | None, ours: Config, clock: StageClock, args: argparse.Namespace
) -> Contestant:
    """Build a model, with its own test pipeline on our images."""
    drop_pretrained(cfg)
    set_random_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if checkpoint:
        load_checkpoint(model, checkpoint, map_location='cpu')
    dataset = copy.deepcopy(ours.test_dataloader.dataset)
    dataset.pipeline = cfg.test_dataloader.dataset.pipeline
    dataset = DATASETS.build(dataset)
    evaluator = Evaluator(copy.deepcopy(ours.test_evaluator))
    evaluator.dataset_meta = dataset.metainfo
    watch_stages(model, clock)
    fixed = FixedDetections(model, clock) if args.detections else None
    return Contestant(name, model.to(args.device).eval(), dataset, evaluator, clock, fixed)


def enter_all(args: argparse.Namespace) -> list[Contestant]:
    """Build the model of the command line, once for each format of masks that it has, and those against it."""
    ours = Config.fromfile(args.config)
    ours.merge_from_dict(args.cfg_options or {})
    clock, contestants = StageClock(args.device), []
    for mask_format, label in dict(bitmap=', bitmaps', rle=', RLE').items():
        cfg = copy.deepcopy(ours)
        if 'mask_format' in (cfg.model.get('test_cfg') or ()):
            cfg.model.test_cfg.mask_format = mask_format
        elif contestants:
            continue
        else:
            label = ''
        contestants.append(enter(cfg.model.type + label, cfg, args.checkpoint, ours, clock, args))
    for against in args.against:
        name, _, checkpoint = against.partition('=')
        if name in RIVALS:
            label, cfg = RIVALS[name][0], rival_config(name, ours)
        else:
            label, cfg = Path(name).stem, Config.fromfile(name)
        contestants.append(enter(label, cfg, checkpoint, ours, clock, args))
    return contestants


def measure(contestants: list[Contestant], args: argparse.Namespace) -> None:
    """Let the models take turns, batch by batch."""
    num_images = len(contestants[0].dataset)
    total, size = args.images or num_images, args.batch_size
    batches = [[i % num_images for i in range(start, min(start + size, total))] for start in range(0, total, size)]
    warmup = [[i % num_images for i in range(start, start + size)] for start in range(0, args.warmup * size, size)]
    for i, indices in enumerate(warmup + batches):
        for contestant in contestants:
            if i == len(warmup):
                contestant.forget()
            contestant.take_turn(indices)
            if args.speed_only:
                contestant.drop_results()
        print(f'\r{i + 1}/{len(warmup + batches)} turns', end='', file=sys.stderr, flush=True)
    print(file=sys.stderr)


def run(contestants: list[Contestant], args: argparse.Namespace) -> Iterator[list[str]]:
    """Give a table for each number of detections, or the one with metrics."""
    for instances in args.detections:
        for contestant in contestants:
            contestant.fixed.set_number(instances)
        measure(contestants, args)
        yield make_table(contestants)
    if not args.detections:
        measure(contestants, args)
        if not args.speed_only:
            for contestant in contestants:
                contestant.metrics = contestant.evaluator.evaluate(len(contestant.dataset))
        yield make_table(contestants)


def span(values: Sequence, form: Callable[[object], str] = str) -> str:
    """Write the least and the largest value, or the one that there is."""
    least, most = min(values), max(values)
    return form(least) if least == most else f'{form(least)} to {form(most)}'


def make_table(contestants: list[Contestant]) -> list[str]:
    """Write medians as a table in Markdown: a column for each model, a row for each stage."""
    first, median = contestants[0], statistics.median

    def row(title: str, form: Callable[[Contestant], str]) -> str:
        return f'| {title} | {" | ".join(form(contestant) for contestant in contestants)} |'

    return [
        row('ms an image', lambda one: one.name),
        '| --- |' + ' ---: |' * len(contestants),
        *(row(stage, lambda one, stage=stage: f'{median(turn[stage] for turn in one.turns):.1f}') for stage in STAGES),
        row('**the whole**', lambda one: f'**{median(one.totals):.1f}**'),
        row(
            f'times {first.name}',
            lambda one: f'{median(theirs / ours for theirs, ours in zip(one.totals, first.totals)):.2f}',
        ),
        row('images a second', lambda one: f'{1e3 / median(one.totals):.2f}'),
        row('detections an image', lambda one: span(one.detections)),
        row('input', lambda one: span(one.input_shapes, lambda shape: 'x'.join(map(str, shape)))),
        *(row(name, lambda one, name=name: f'{one.metrics.get(name, math.nan):.3f}') for name in first.metrics),
    ]


def describe(args: argparse.Namespace, turns: int) -> str:
    """Say how the tables came about."""
    fixed = (
        'So that all do the same work whatever their weights, drawn with a seed where there is no checkpoint, their '
        f'number of detections is fixed: the {CANDIDATES}-fold number of best class scores passes the threshold, and '
        'boxes keep their centres but get sizes drawn around 110 input pixels (SOLOv2 has no boxes). '
    )
    return (
        f'`python tools/analysis_tools/benchmark.py {shlex.join(sys.argv[1:])}`: medians of {turns} turns after '
        f'{args.warmup} of warm-up, {args.batch_size} image{"s" * (args.batch_size > 1)} a turn. Models take turns in '
        'one process, so that other work on the machine hits all alike. Those named after `--against` have the first '
        "one's backbone, and its images in their own test pipeline. "
        f'{fixed if args.detections else ""}'
        'Each moment counts for one stage, the innermost. "Loading" is the pipeline, in this process, with normalizing '
        'and padding; "heads" is what has weights after the neck, RPN and the boxes of RoIs too; "NMS" includes '
        'decoding boxes; "mask stage" is what is done for each detection, from its RoI (Mask R-CNN) or its dynamic '
        'convolutions (CondInst) to the mask in original pixels; "encoding" is what the metrics do with a result. Run '
        'it on an idle machine, with `OMP_WAIT_POLICY=passive` where it is not.'
    )


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', nargs='?', help='without it weights are drawn')
    parser.add_argument('--speed-only', action='store_true', help='do not evaluate')
    parser.add_argument(
        '--against',
        nargs='+',
        default=[],
        metavar='MODEL[=CHECKPOINT]',
        help=f'models that take turns with it: {", ".join(RIVALS)}, all, or configs',
    )
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--threads', type=int, default=2, help='of the CPU')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--images', type=int, help='with --speed-only; 20 by default, without it all')
    parser.add_argument('--warmup', type=int, default=2, metavar='TURNS', help='turns that do not count')
    parser.add_argument(
        '--detections',
        type=int,
        nargs='+',
        metavar='N',
        help='fix the number of detections of an image, alike for all models, with a table for each number; 100 by '
        'default where a model has no checkpoint; 0 for what the weights give',
    )
    parser.add_argument('--out', type=Path, help=f'Markdown file that gets the table, as its section "{SECTION}"')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help="override the config's settings: key=value")
    args = parser.parse_args()
    if 'all' in args.against:
        args.against = list(RIVALS)
    return args


def check_args(args: argparse.Namespace) -> None:
    """End with a message where arguments do not fit, and fill in what depends on others."""
    check_config(args.config)
    checkpoints = {args.config: args.checkpoint}
    for against in args.against:
        name, _, checkpoint = against.partition('=')
        if name not in RIVALS and not Path(name).is_file():
            fail(f'--against takes {", ".join(RIVALS)}, all, or the path of a config; got {name}.')
        checkpoints[name] = checkpoint
    for checkpoint in filter(None, checkpoints.values()):
        check_checkpoint(checkpoint)
    without = [name for name, checkpoint in checkpoints.items() if not checkpoint]
    numbers = dict(batch_size=1, warmup=0, images=1, threads=1)
    for name, least in numbers.items():
        value = getattr(args, name)
        if value is not None and value < least:
            fail(f'--{name.replace("_", "-")} must be at least {least}, got {value}.')
    if args.device != 'cpu' and not torch.cuda.is_available():
        fail(f'this torch has no GPU for --device {args.device}.')
    if not args.speed_only:
        if without:
            fail(
                f'{without[0]} has no checkpoint to evaluate: name one (with --against: MODEL=CHECKPOINT), '
                'or give --speed-only.'
            )
        if args.images or args.detections:
            fail('--images and --detections need --speed-only: metrics are those of all images and all detections.')
        args.detections = []
        return
    args.images = args.images or 20
    if args.detections is None:
        args.detections = [100] if without else []
    if min(args.detections, default=1) < 0:
        fail(f'--detections must be at least 0, got {min(args.detections)}.')
    args.detections = [instances for instances in args.detections if instances]


def main() -> None:
    """Measure, print and write the table."""
    args = parse_args()
    check_args(args)
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    MMLogger.get_instance('benchmark', log_level='WARNING')  # else every weight's initialization is told
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what is printed in the end is the text alone
            contestants = enter_all(args)
            tables = list(run(contestants, args))
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except FileNotFoundError as error:
        fail_missing(error)
    lines = [describe(args, len(contestants[0].turns)), '', describe_machine(args.device) + describe_load()]
    for table in tables:
        lines += ['', *table]
    print('\n'.join(lines))
    if args.out:
        write_section(args.out, SECTION, '\n'.join(lines))


if __name__ == '__main__':
    main()
