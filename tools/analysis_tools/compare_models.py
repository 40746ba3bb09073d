"""Train models for equally many iterations on equal data, and compare their AP over iterations and over time.

Any MMDetection config will do. Each keeps its model, data, augmentation and optimizer; the schedule is the same for
all: a linear warm-up over 5 % of the iterations and a cosine to zero, tested on the way. A seed gives every model the
same batches. Each training is a run of tools/train.py of its own; those that are finished are used again, so a long
comparison may be interrupted and continued, and a model added to it later. Tables and a plot go to docs/accuracy.md,
and what they are made of to docs/accuracy.json, so that another machine can go on. A config that has changed is
noticed; to train a model again whose code has changed, remove its folder and its lines there.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools'), str(ROOT / 'tools' / 'analysis_tools')]

from run_installed import check_config, fail, fail_missing, require_mmdet  # noqa: E402

require_mmdet()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib import rc_context  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from measuring import describe_machine, write_section  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.device import get_device  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.model import BaseModel  # noqa: E402
from mmengine.optim import OptimWrapper, build_optim_wrapper  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.runner import Runner, load_checkpoint  # noqa: E402

import embedmask_mmdet  # noqa: E402, F401, lets the checkpoints of any model load with the safe unpickler

METRICS = {'segm': 'mask AP', 'bbox': 'box AP'}
EQUAL_BY_CHOICE = ('train_dataloader', 'val_dataloader', 'optim_wrapper')
Curve = dict[int, dict[str, float]]  # AP of each metric after each of some iterations


@dataclass
class Model:
    """A config that takes part, and what came of it."""

    name: str
    path: str
    iterations: list[int]
    cfg: Config
    curves: dict[int, Curve] = field(default_factory=dict)  # of each seed
    step_seconds: list[float] = field(default_factory=list)  # of each round
    parameters: int = 0
    timed_trained: bool = True


def split_limit(argument: str) -> tuple[str, int | None]:
    """Split ``CONFIG:ITERATIONS`` into its two parts, the second of which may be missing."""
    match = re.fullmatch(r'(.+\.py):(\d+)', argument)
    return (match[1], int(match[2])) if match else (argument, None)


def last_pipeline(dataset: dict) -> list[dict]:
    """Return the transforms that a sample of a dataset, which may be wrapped, passes last."""
    while 'pipeline' not in dataset:
        if 'dataset' not in dataset:
            fail(f'the dataset {dataset.get("type")} has no pipeline, so --scale cannot enlarge its images.')
        dataset = dataset['dataset']
    return dataset['pipeline']


def enlarge(cfg: Config, factor: float) -> None:
    """Enlarge what the model sees, in training behind all augmentation, in tests where images are resized anyway."""
    pipeline = last_pipeline(cfg.train_dataloader.dataset)
    pipeline.insert(len(pipeline) - 1, dict(type='Resize', scale_factor=float(factor), keep_ratio=True))
    resizes = [step for step in last_pipeline(cfg.val_dataloader.dataset) if step['type'] == 'Resize']
    if not resizes:
        fail('--scale needs a `Resize` in the pipeline of val_dataloader.')
    for step in resizes:
        name = 'scale' if 'scale' in step else 'scale_factor'
        value = step[name]
        step[name] = tuple(int(v * factor) for v in value) if name == 'scale' else float(value * factor)


def set_schedule(cfg: Config, iterations: list[int]) -> None:
    """Train to the last of `iterations` and test after each of them."""
    last = iterations[-1]
    warm_up = last // 20
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, begin=warm_up, end=last, eta_min=0)]
    if warm_up > 1:
        linear = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up)
        cfg.param_scheduler.insert(0, linear)
    # The interval between two iterations is the second of them, of which no other multiple lies between. MMEngine
    # looks one iteration ahead when it asks which interval holds.
    intervals = [(before + 2, iteration) for before, iteration in pairwise(iterations)]
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=last, val_interval=iterations[0], dynamic_intervals=intervals
    )
    cfg.val_cfg = dict(type='ValLoop')


def prepare(cfg: Config, iterations: list[int], seed: int, scale: float) -> Config:
    """Turn a config into that of one training."""
    cfg = Config(cfg.to_dict())
    if scale != 1:
        enlarge(cfg, scale)
    set_schedule(cfg, iterations)
    cfg.randomness = dict(seed=seed)
    # A process of its own draws the samples, so that a model which draws random numbers changes no batch.
    workers = max(1, cfg.train_dataloader.get('num_workers', 0))
    cfg.train_dataloader.update(num_workers=workers, persistent_workers=True)
    cfg.log_processor = dict(type='LogProcessor', window_size=1, by_epoch=False)
    backends = [dict(type='LocalVisBackend')]
    cfg.visualizer = dict(type='DetLocalVisualizer', vis_backends=backends, name='visualizer')
    cfg.default_hooks = cfg.get('default_hooks', {})
    cfg.default_hooks.update(
        logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations[-1], save_optimizer=False),
    )
    cfg.resume = False
    return cfg


def fingerprint(cfg: Config) -> str:
    """Return a digest of what decides a training's result, which the tests on the way do not."""
    content = cfg.to_dict()
    for name in ('val_interval', 'dynamic_intervals'):
        content['train_cfg'].pop(name)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def metrics_of(cfg: Config) -> list[str]:
    """Return which metrics a config's evaluators compute."""
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    named = [metric for evaluator in evaluators for metric in np.atleast_1d(evaluator.get('metric', []))]
    return [metric for metric in METRICS if metric in named]


def read_log(folder: Path, metrics: list[str]) -> tuple[Curve, float]:
    """Read AP over iterations, and median seconds an iteration, from what MMEngine logged last below a folder."""
    log = max(folder.glob('*/vis_data/scalars.json'), key=os.path.getmtime)
    curve, seconds = {}, []
    for line in log.read_text().splitlines():
        values = json.loads(line)
        if 'loss' in values:
            seconds.append(values['time'])
            continue
        found = {metric: values[key] for metric in metrics for key in values if key.endswith(f'{metric}_mAP')}
        # MMDetection reports nothing where nothing was detected.
        curve[values['step']] = {metric: found.get(metric, 0.0) for metric in metrics}
    return curve, statistics.median(seconds)


def read_json(path: Path) -> dict:
    """Read a JSON file; one that does not exist is empty."""
    return json.loads(path.read_text()) if path.exists() else {}


def curve_in(result: dict, cfg: Config, iterations: list[int]) -> Curve | None:
    """Return the curve of a finished training, if the result is one of this very config with these iterations."""
    curve = {int(iteration): aps for iteration, aps in result.get('curve', {}).items()}
    return curve if result.get('fingerprint') == fingerprint(cfg) and set(iterations) <= curve.keys() else None


def find_curve(model: Model, seed: int, args: argparse.Namespace) -> Curve | None:
    """Look for the curve of a finished training in its folder, then among what earlier comparisons wrote."""
    name = run_name(model, args.scale, seed)
    cfg = prepare(model.cfg, model.iterations, seed, args.scale)
    stored = read_json(args.out.with_suffix('.json')).get(name, {})
    results = (read_json(args.work_dir / name / 'result.json'), stored)
    curves = (curve_in(result, cfg, model.iterations) for result in results)
    return next((curve for curve in curves if curve is not None), None)


def train(model: Model, seed: int, args: argparse.Namespace) -> None:
    """Train a model with one seed unless that was done before, and note its curve; say so where it fails."""
    curve = find_curve(model, seed, args)
    if curve is None and args.report:
        print(f'{model.name}, seed {seed}: not trained', file=sys.stderr, flush=True)
        return
    if curve is None:
        folder = args.work_dir / run_name(model, args.scale, seed)
        cfg = prepare(model.cfg, model.iterations, seed, args.scale)
        folder.mkdir(parents=True, exist_ok=True)
        cfg.dump(folder / 'config.py')
        log = folder / 'train.log'
        print(f'{model.name}, seed {seed}: training, see {log}', flush=True)
        command = [sys.executable, ROOT / 'tools' / 'train.py', folder / 'config.py', '--work-dir', folder]
        with log.open('w') as stream:
            failed = subprocess.run(list(map(str, command)), stdout=stream, stderr=subprocess.STDOUT).returncode
        if failed:
            lines = log.read_text().strip().splitlines() or ['nothing was said']
            print(f'{model.name}, seed {seed}: FAILED: {lines[-1]}', file=sys.stderr, flush=True)
            return
        curve, seconds = read_log(folder, metrics_of(cfg))
        result = dict(fingerprint=fingerprint(cfg), curve=curve, seconds_an_iteration=seconds)
        scratch = folder / 'result.json.part'
        scratch.write_text(json.dumps(result, indent=1))
        scratch.replace(folder / 'result.json')
    model.curves[seed] = curve
    aps = '; '.join(
        f'{METRICS[metric]} ' + ' / '.join(f'{curve[i][metric]:.3f}' for i in model.iterations)
        for metric in metrics_of(model.cfg)
    )
    print(f'{model.name}, seed {seed}: {aps}', flush=True)


def run_name(model: Model, scale: float, seed: int) -> str:
    """Name one training, also the folder it has: one of another schedule must not take its place."""
    enlarged = '' if scale == 1 else f'-x{scale:g}'
    return f'{model.name}{enlarged}-{model.iterations[-1]}it/seed{seed}'


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep MMEngine from telling the learning rate of each parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)


def load_trained(model: Model, folder: Path) -> tuple[BaseModel, OptimWrapper]:
    """Load a model from the folder of its training, untrained if that was elsewhere, and count its parameters."""
    network = MODELS.build(model.cfg.model)
    checkpoint = folder / f'iter_{model.iterations[-1]}.pth'
    model.timed_trained = checkpoint.exists()
    with quiet():
        if model.timed_trained:
            load_checkpoint(network, str(checkpoint), map_location='cpu', logger='silent')
        else:
            network.init_weights()
    model.parameters = sum(parameter.numel() for parameter in network.parameters())
    network.to(get_device()).train()
    with quiet():
        return network, build_optim_wrapper(network, model.cfg.optim_wrapper)


def time_steps(models: list[Model], scale: float, work_dir: Path, rounds: int) -> None:
    """Time training steps, without the loading of data, of trained models that take turns on the same batches.

    What else the machine does then stretches all of a round alike, as it would not in trainings that ran one after the
    other; so steps of the same round are divided by each other.
    """
    cfg = prepare(models[0].cfg, models[0].iterations, 0, scale)
    batches = cycle(Runner.build_dataloader(cfg.train_dataloader, seed=0))
    loaded = [load_trained(model, work_dir / run_name(model, scale, min(model.curves))) for model in models]
    for timed in range(rounds + 1):
        batch = next(batches)
        for model, (network, optim_wrapper) in zip(models, loaded):
            own_batch = copy.deepcopy(batch)  # models pad the masks in their samples
            start = time.perf_counter()
            network.train_step(own_batch, optim_wrapper)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if timed:
                model.step_seconds.append(time.perf_counter() - start)


def relative_seconds(model: Model, first: Model) -> list[float]:
    """Divide the steps of each round by the first model's, and return a quarter's, the median and three quarters'."""
    return np.quantile(np.divide(model.step_seconds, first.step_seconds), [0.25, 0.5, 0.75]).tolist()


def curve_of(model: Model, metric: str, seed: int) -> tuple[list[int], list[float]]:
    """Return iterations, beginning with 0, and AP."""
    points = {iteration: aps[metric] for iteration, aps in sorted(model.curves[seed].items())}
    return [0, *points], [0.0, *points.values()]


def in_equal_time(model: Model, first: Model, metric: str, seed: int) -> float:
    """Return AP after as many iterations as take the time of all of the first model's; linear between tests."""
    iterations = first.iterations[-1] / relative_seconds(model, first)[1]
    return float(np.interp(iterations, *curve_of(model, metric, seed)))


def have_curves(models: list[Model]) -> bool:
    """Tell whether models were tested more than once; one test says nothing about the time before it."""
    return len({iteration for model in models for iteration in model.iterations}) > 1


def format_mean(values: list[float]) -> str:
    """Format mean and standard deviation."""
    if not values:
        return '-'
    spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.3f}{spread}'


def format_aps(models: list[Model], metric: str, iterations: list[int]) -> str:
    """Format one metric of models that have it as a table in Markdown."""
    first = models[0]
    seeds = max(len(model.curves) for model in models)
    with_time = have_curves(models)
    heads = [METRICS[metric], *(f'{i} it' for i in iterations)]
    if with_time:
        heads.append(f'in the time of {first.name}')
    lines = [f'| {" | ".join(heads)} |', f'| --- |{" ---: |" * (len(heads) - 1)}']
    for model in models:
        columns = [format_mean([curve[i][metric] for curve in model.curves.values() if i in curve]) for i in iterations]
        if with_time:
            columns.append(format_mean([in_equal_time(model, first, metric, seed) for seed in model.curves]))
        lines.append(f'| {describe(model, iterations, seeds)} | {" | ".join(columns)} |')
    return '\n'.join(lines)


def describe(model: Model, iterations: list[int], seeds: int) -> str:
    """Name a model, and its schedule and seeds where they are other than the others'."""
    last = model.iterations[-1]
    schedule = '' if last == iterations[-1] else f', schedule of {last}'
    return model.name + schedule + ('' if len(model.curves) == seeds else f', seeds: {len(model.curves)}')


def format_costs(models: list[Model]) -> str:
    """Format seconds and parameters as a table in Markdown."""
    lines = [
        f'| | seconds an iteration | against {models[0].name} | million parameters |',
        '| --- | ---: | ---: | ---: |',
    ]
    for model in models:
        low, median, high = relative_seconds(model, models[0])
        against = '1' if model is models[0] else f'{median:.2f} ({low:.2f} to {high:.2f})'
        seconds = statistics.median(model.step_seconds)
        lines.append(f'| {model.name} | {seconds:.3f} | {against} | {model.parameters / 1e6:.2f} |')
    return '\n'.join(lines)


def plot(models: list[Model], path: Path) -> None:
    """Draw AP over iterations: the mean of the seeds, and from the lowest to the highest of them."""
    with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'comparison', 'font.family': 'sans-serif'}):
        figure = Figure(figsize=(10, 4.5), layout='constrained')
        for axes, metric in zip(figure.subplots(1, 2, sharey=True), METRICS):
            for number, model in enumerate(models):
                if metric not in metrics_of(model.cfg):
                    continue
                curves = [curve_of(model, metric, seed) for seed in model.curves]
                shared = sorted(set.intersection(*(set(iterations) for iterations, _ in curves)))
                aps = np.array([np.interp(shared, *curve) for curve in curves])
                axes.plot(shared, aps.mean(0), f'C{number}.-', label=model.name)
                axes.fill_between(shared, aps.min(0), aps.max(0), color=f'C{number}', alpha=0.2, linewidth=0)
            axes.set(xlabel='iterations', ylabel=METRICS[metric], xlim=(0, None))
            axes.grid(alpha=0.3)
        # Both share it, so it is set when both are drawn.
        axes.set_ylim(0, None)
        # The second has all of them: every model has boxes.
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc='outside lower center', ncols=3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={'Date': None} if path.suffix == '.svg' else None)


def differences(models: list[Model]) -> list[str]:
    """Name the parts of the configs, of those that ought to be equal, which are not those of the first."""
    found = []
    for model in models[1:]:
        names = [name for name in EQUAL_BY_CHOICE if model.cfg.get(name) != models[0].cfg.get(name)]
        if names:
            found.append(f'{model.name} has another {" and ".join(names)} than {models[0].name}.')
    return found


def command_line(args: argparse.Namespace) -> str:
    """Return the command that repeats a comparison from the repository's folder."""
    configs = [os.path.relpath(config, ROOT) if Path(config).is_absolute() else config for config in args.configs]
    options = ['--seeds', args.seeds, '--iterations', *args.iterations, '--title', args.title]
    if args.scale != 1:
        options += ['--scale', f'{args.scale:g}']
    return shlex.join(['python', 'tools/analysis_tools/compare_models.py', *configs, *map(str, options)])


def store(models: list[Model], args: argparse.Namespace) -> None:
    """Write what tables are made of, beside what is there of other models."""
    path = args.out.with_suffix('.json')
    results = read_json(path)
    for model in models:
        for seed, curve in model.curves.items():
            digest = fingerprint(prepare(model.cfg, model.iterations, seed, args.scale))
            results[run_name(model, args.scale, seed)] = dict(fingerprint=digest, curve=curve)
    lines = ',\n'.join(f'{json.dumps(name)}: {json.dumps(results[name])}' for name in sorted(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{\n{lines}\n}}\n')


def describe_conditions(models: list[Model], args: argparse.Namespace) -> str:
    """Say what the figures of a comparison are, and on which machine they were measured."""
    seeds = max(len(model.curves) for model in models)
    sentences = [
        f'Mean and standard deviation over {seeds} seeds.' if seeds > 1 else 'One seed.',
        f'All iterations belong to one schedule, a warm-up and a cosine that ends at {args.iterations[-1]}.',
    ]
    if args.scale != 1:
        sentences.append(f'Inputs are enlarged by {args.scale:g}.')
    if have_curves(models):
        sentences.append(
            'The last column is AP after as long as the first model trains in all, linear between the tests.'
        )
    sentences += [
        f'Seconds are medians over {args.rounds} training steps of trained models that take turns on the same batches, '
        'without data loading; ratios are those within a round, the median and the middle half.',
        *(f'{model.name} was timed untrained.' for model in models if not model.timed_trained),
        *differences(models),
        describe_machine(get_device()),
    ]
    return ' '.join(sentences)


def report(models: list[Model], args: argparse.Namespace) -> None:
    """Print the tables, and write them, with a plot if there is something to draw."""
    with_metric = {metric: [model for model in models if metric in metrics_of(model.cfg)] for metric in METRICS}
    tables = [format_aps(some, metric, args.iterations) for metric, some in with_metric.items() if some]
    tables.append(format_costs(models))
    paragraphs = [f'`{command_line(args)}`', describe_conditions(models, args), *tables]
    written = [args.out]
    if have_curves(models):
        slug = re.sub('[^a-z0-9]+', '-', args.title.lower()).strip('-')
        picture = args.out.with_name(f'{args.out.stem}-{slug}.svg')
        plot(models, picture)
        paragraphs.append(f'![AP over iterations]({picture.name})')
        written.append(picture)
    if not args.out.exists():
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text('# Accuracy\n\n')
    write_section(args.out, args.title, '\n\n'.join(paragraphs))
    print('', *tables, f'written to {" and ".join(map(str, written))}', sep='\n\n')


def read_models(args: argparse.Namespace) -> list[Model]:
    """Read the configs, and end with a message if they cannot be compared."""
    models = []
    for argument in args.configs:
        path, limit = split_limit(argument)
        check_config(path)
        cfg = Config.fromfile(path)
        missing = [name for name in ('model', 'train_dataloader', 'val_dataloader', 'val_evaluator') if name not in cfg]
        if missing:
            fail(f'{path} has no {" and no ".join(missing)}.')
        if not metrics_of(cfg):
            fail(f"{path}: metric of val_evaluator must name 'bbox', 'segm' or both.")
        last = limit or args.iterations[-1]
        iterations = [iteration for iteration in args.iterations if iteration < last] + [last]
        models.append(Model(Path(path).stem, path, iterations, cfg))
    names = [model.name for model in models]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        fail(f'several configs have the name {", ".join(sorted(doubled))}, by which results are told apart.')
    datasets = [model.cfg.val_dataloader.dataset for model in models]
    files = {f'{dataset.get("data_root")} {dataset.get("ann_file")}' for dataset in datasets}
    if len(files) > 1:
        fail(f'the configs are tested on different data: {", ".join(sorted(files))}.')
    return models


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='CONFIG',
        help='the first is the one that others are measured against; CONFIG:N gives a slow model a schedule of only N',
    )
    parser.add_argument('--seeds', type=int, default=3, help='how many, from 0 (default: %(default)s)')
    parser.add_argument(
        '--iterations', type=int, nargs='+', default=[100, 300, 600], help='tested after these (default: %(default)s)'
    )
    parser.add_argument('--scale', type=float, default=1, help='enlarge the input by this factor, such as 2 or 4')
    parser.add_argument('--rounds', type=int, default=20, help='training steps that are timed (default: %(default)s)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/comparison'), help='folder of the trainings')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'accuracy.md', help='Markdown file to write')
    parser.add_argument('--title', default='Comparison', help="of the section, in place of an older one's of that name")
    parser.add_argument('--report', action='store_true', help='train nothing, report what is trained already')
    args = parser.parse_args()
    args.iterations = sorted(set(args.iterations))
    if min(args.iterations[0], args.seeds, args.rounds) < 1 or args.scale <= 0:
        fail('--iterations, --seeds and --rounds must be at least 1, and --scale above 0.')
    if args.out.suffix != '.md':
        fail(f'--out must be a Markdown file, got {args.out}: NAME.md, beside which NAME.json is written.')
    return args


def main() -> None:
    """Train, time, and write the tables."""
    args = parse_args()
    models = read_models(args)
    init_default_scope('mmdet')
    for line in differences(models):
        print(f'Note: {line}', file=sys.stderr)
    # All models with one seed before the next seed: a comparison cut short is still one.
    for seed in range(args.seeds):
        for model in models:
            train(model, seed, args)
    trained = [model for model in models if model.curves]
    if trained:
        store(trained, args)
        try:
            time_steps(trained, args.scale, args.work_dir, args.rounds)
        except FileNotFoundError as error:
            fail_missing(error)
        report(trained, args)
    failed = 0 if args.report else sum(args.seeds - len(model.curves) for model in models)
    if failed:
        fail(f'{failed} of {args.seeds * len(models)} trainings failed; the lines above say why.')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
