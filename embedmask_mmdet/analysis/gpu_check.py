"""Run what needs a GPU: tests, and the benchmarks. Each part writes its section of a page as soon as it has results."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from embedmask_mmdet.analysis import mask_loss, training_cost
from embedmask_mmdet.analysis.end_to_end import run_benchmark
from embedmask_mmdet.analysis.end_to_end.options import Options, parse_rivals
from embedmask_mmdet.analysis.machine import describe_machine
from embedmask_mmdet.analysis.markdown import write_section
from embedmask_mmdet.analysis.mask_stage.report import describe_tables, format_tables
from embedmask_mmdet.analysis.operators import check_kernels, read_last_line
from embedmask_mmdet.datasets.coco import CocoWriter
from embedmask_mmdet.datasets.shapes import SHAPES, draw_image
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.locations import CONFIGS, REPOSITORY

PAGE_TITLE = 'Benchmarks on a GPU'
CONFIG = CONFIGS / 'embedmask_r50_1x_coco.py'
COCO_ANNOTATIONS = Path('data/coco/annotations/instances_val2017.json')
TEST_SECONDS = 300  # tests that take longer hang
MASK_MEMORY = 4  # GB, as benchmark_masks.py has it


@dataclass(frozen=True)
class Plan:
    """What is measured, and where.

    Args:
        device: A CUDA device; the tests of this module use the CPU.
        threads: CPU threads.
        tests: Arguments of pytest.
        mask_cases: Cases of the mask stage. The last one is left out: its bitmaps of 12 million pixels take a minute.
        rounds: Turns of each method of the mask stage.
        loss_shape: Height and width of the images of the mask loss.
        loss_instances: Instances in each of its two images.
        crowd: Instances of its crowded image.
        images: Images of each model in complete inference.
        warmup: Turns of each model that do not count.
        detections: Numbers of detections in complete inference.
        options: Settings of the config in complete inference.
        rivals: Models that it is compared with.
        training: Batch of the training step, and number of steps.
        precisions: Precisions of complete inference and training.
    """

    device: str = 'cuda'
    threads: int = 4
    tests: Sequence[str] = ('-m', 'gpu', 'tests/ops/test_cuda.py', 'tests/models/test_gpu.py')
    mask_cases: Sequence[int] = (0, 1, 2, 3, 4)
    rounds: int = 5
    loss_shape: tuple[int, int] = (800, 1088)
    loss_instances: int = 20
    crowd: int = 300
    images: int = 8
    warmup: int = 2
    detections: Sequence[int] = (100, 10)
    options: dict = field(default_factory=dict)
    rivals: Sequence[str] = ('all',)
    training: training_cost.Case = field(default_factory=training_cost.Case)
    precisions: Sequence[str] = ('float32', 'float16')


def read_test_results(report: Path) -> tuple[str, list[str]]:
    """Read pytest's report.

    Args:
        report: File that ``--junitxml`` wrote.

    Returns:
        A sentence with the counts; a line for each test that failed, and for each reason to skip.
    """
    suite = next(ElementTree.parse(report).iter('testsuite'))
    total, failed, skipped = (
        sum(int(suite.get(name)) for name in names) for names in (('tests',), ('failures', 'errors'), ('skipped',))
    )
    lines = []
    for case in suite.iter('testcase'):
        for outcome in case:
            if outcome.tag in ('failure', 'error', 'skipped'):
                message = (outcome.get('message') or '').strip().splitlines() or ['']
                lines.append(f'- {outcome.tag}: `{case.get("name")}`: {message[0]}')
    return f'{total - failed - skipped} passed, {failed} failed, {skipped} skipped.', lines


def run_tests(plan: Plan) -> Iterator[str]:
    """Run the tests that need a GPU in their own process, and yield how many passed and which did not.

    Raises:
        RuntimeError: If a test fails, or none passes.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'report.xml')
        command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={report}', *plan.tests]
        options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TEST_SECONDS)
        ran = subprocess.run(command, cwd=REPOSITORY, **options)
        print(ran.stdout, flush=True)
        if not report.exists():
            raise RuntimeError(ran.stdout or f'pytest ended with exit code {ran.returncode}')
        counts, lines = read_test_results(report)
    yield f'`pytest {" ".join(plan.tests)}`\n\n{describe_machine(plan.device)}\n\n{counts}'
    yield '\n'.join(lines)
    if ran.returncode or counts.startswith('0 passed'):
        raise RuntimeError(counts)


@torch.no_grad()
def measure_masks(plan: Plan) -> Iterator[str]:
    """Yield a description, and the table of each case of the mask stage.

    Raises:
        InputError: If the extension has no kernels for the device.
    """
    check_kernels(plan.device)
    yield describe_tables(plan.device, MASK_MEMORY)
    yield from format_tables(plan.mask_cases, plan.device, plan.rounds, MASK_MEMORY * 1e9)


def measure_losses(plan: Plan) -> Iterator[str]:
    """Yield a description, and the lines of the table of the mask loss.

    Raises:
        InputError: If the extension has no kernels for the device.
    """
    check_kernels(plan.device)
    height, width = plan.loss_shape
    yield (
        f'`tools/analysis_tools/benchmark_loss.py --device {plan.device}`: forward and backward from pixel embeddings '
        f'and proposals to their gradients, with images of {height}x{width} whose masks are on the CPU. Times are the '
        'best of 5 runs. Memory is the highest amount on the GPU beyond the inputs.'
        f'\n\n{describe_machine(plan.device)}\n'
    )
    cases, crowded = (
        [mask_loss.Case(weights, *size, plan.loss_shape, plan.device) for weights in mask_loss.DRAW_EMBEDDINGS]
        for size in ((2, plan.loss_instances), (1, plan.crowd))
    )
    yield from mask_loss.format_table(cases, crowded, plan.threads, repeats=5)


def draw_images(folder: Path, num_images: int) -> dict:
    """Write images of 480x640 with shapes, and return the settings that make a COCO config test on them."""
    writer = CocoWriter(folder, 'test', list(SHAPES))
    for index in range(num_images):
        image, masks, labels = draw_image(np.random.default_rng(index), 640)
        image_id = writer.add_image(f'{index}.jpg', image[:480])
        for mask, label in zip(masks, labels):
            if mask[:480].any():
                writer.add_instance(image_id, mask[:480], label + 1)
    writer.save()
    annotations = str(folder / 'annotations' / 'test.json')
    dataset = dict(data_root='', ann_file=annotations, data_prefix=dict(img=f'{folder}/images/'))
    options = {f'test_dataloader.dataset.{name}': value for name, value in dataset.items()}
    return {
        **options,
        'test_dataloader.dataset.metainfo': dict(classes=tuple(SHAPES)),
        'test_evaluator.ann_file': annotations,
    }


def measure_inference(plan: Plan) -> Iterator[str]:
    """Yield the tables of complete inference for each precision, on COCO in ``data/coco`` or on drawn images."""
    with tempfile.TemporaryDirectory() as folder:
        options, images = plan.options, ''
        if not COCO_ANNOTATIONS.exists():
            options = {**draw_images(Path(folder), plan.images), **options}
            images = 'Images of 480x640 are drawn. '
        arguments = dict(
            config=str(CONFIG),
            rivals=parse_rivals(plan.rivals),
            device=plan.device,
            threads=plan.threads,
            images=plan.images,
            warmup=plan.warmup,
            detections=plan.detections,
            speed_only=True,
            cfg_options=options,
        )
        for precision in plan.precisions:
            command = (
                f'benchmark.py {CONFIG.name} --speed-only --against {" ".join(plan.rivals)} --device {plan.device} '
                f'--precision {precision}'
            )
            text = run_benchmark(Options(precision=precision, **arguments), command)
            yield f'### {precision}\n\n{images}{text}\n'
            free_memory()


def measure_training(plan: Plan) -> Iterator[str]:
    """Yield a description, and the lines of the table of training steps."""
    case = plan.training
    yield (
        'Forward, backward and optimizer step, without data loading, with ResNet-50 and '
        f'{case.num_imgs} images of {"x".join(map(str, case.img_shape))} with {case.num_instances} instances each. '
        f'Medians of {case.steps} steps after {case.warmup}. Memory is the highest amount that PyTorch allocates, with '
        'weights and optimizer. Ratios are those to the first model in the same precision. float32 is without '
        'autocast; convolutions use TF32, as PyTorch does by default. float16 is `AmpOptimWrapper`.'
        f'\n\n{describe_machine(plan.device)}\n'
    )
    yield from training_cost.measure_table(case, plan.precisions, plan.device)


class Part(NamedTuple):
    """A section of the page, and what measures it and yields pieces of its text."""

    title: str
    run: Callable[[Plan], Iterator[str]]


PARTS = dict(
    tests=Part('Tests', run_tests),
    masks=Part('The mask stage of inference', measure_masks),
    loss=Part('The mask loss', measure_losses),
    inference=Part('End to end', measure_inference),
    training=Part('Training', measure_training),
)


def free_memory() -> None:
    """Free the GPU's memory that nothing uses any more."""
    gc.collect()
    torch.cuda.empty_cache()


def run_part(name: str, part: Part, plan: Plan, page: Path) -> str:
    """Run a part, and write its section of the page anew after each piece.

    Args:
        name: Key of the part.
        part: The part.
        plan: What is measured.
        page: The Markdown file.

    Returns:
        The last line of its error, or nothing if all went well.
    """
    pieces, problem, start = [], '', time.perf_counter()
    print(f'== {name}', flush=True)
    try:
        for piece in part.run(plan):
            print(piece, flush=True)
            pieces.append(piece)
            write_section(page, part.title, '\n'.join(pieces), PAGE_TITLE)
    except Exception as error:
        traceback.print_exc()
        problem = read_last_line(error)
        pieces.append(f'\n**Failed:** {problem}')
        write_section(page, part.title, '\n'.join(pieces), PAGE_TITLE)
    free_memory()
    print(f'== {name}: {problem or "done"} after {time.perf_counter() - start:.0f} s', flush=True)
    return problem


def check_gpu(names: Sequence[str], page: Path, plan: Plan | None = None) -> None:
    """Run parts, and write a page about them.

    Args:
        names: Keys of :data:`PARTS`.
        page: Markdown file. Sections of parts that are not run stay.
        plan: What is measured; None for the defaults, which need a GPU.

    Raises:
        InputError: If there is no GPU, or if parts failed; the others were run.
    """
    if plan is None and not torch.cuda.is_available():
        raise InputError('this torch sees no GPU, so there is nothing to check. Run it where `nvidia-smi` lists one.')
    plan = plan or Plan()
    torch.set_num_threads(plan.threads)
    init_default_scope('mmdet')
    MMLogger.get_instance('gpu_check', log_level='WARNING')  # otherwise it lists how each weight is initialized
    problems = {name: run_part(name, PARTS[name], plan, page) for name in names}
    print(f'written to {page}', flush=True)
    failed = [f'{name} ({problem})' for name, problem in problems.items() if problem]
    if failed:
        raise InputError(f'{len(failed)} of {len(names)} parts failed: {", ".join(failed)}.')
