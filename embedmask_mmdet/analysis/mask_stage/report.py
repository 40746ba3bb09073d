"""The tables about the mask stage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from embedmask_mmdet import ops
from embedmask_mmdet.analysis.machine import describe_load, describe_machine
from embedmask_mmdet.analysis.mask_stage.cases import CASES, CHANNELS, IMG_SHAPES, STRIDE, UPSCALE, draw_arguments
from embedmask_mmdet.analysis.mask_stage.methods import Method, make_methods
from embedmask_mmdet.analysis.mask_stage.timing import Cost, measure_methods, run_once, warm_up
from embedmask_mmdet.ops.mask_stage import box_cells

# Multiplications for a channel of a cell: half a resize along x, which the rows above and below share, one along y,
# the square, the margin.
PRODUCTS_PER_CHANNEL = 3.5
NOTES = dict(
    cpu='The time of large bitmaps is mostly that of mapping their memory.',
    gpu='Bitmaps stay on the GPU. Run lengths are on the CPU: the kernels encode on the GPU, and the others copy '
    'bitmaps to the CPU, where pycocotools encodes them. Memory is that of the GPU.',
)


def count_products(arguments: dict) -> tuple[int, float]:
    """Count the cells of the mask grid inside the boxes, and the multiplications that their masks take."""
    grid = [UPSCALE * size for size in arguments['pixel_embed'].shape[1:]]
    cells = box_cells(arguments['bboxes'], grid, STRIDE / UPSCALE)
    num_cells = int(((cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])).sum())
    return num_cells, num_cells * CHANNELS * PRODUCTS_PER_CHANNEL


def measure_floor(arguments: dict, rounds: int) -> str:
    """Describe the least time that this machine needs for the multiplications and for writing the bitmaps.

    Args:
        arguments: Arguments of ``ops.instance_masks``.
        rounds: A 20th of the number of runs, of which the fastest counts.
    """
    device, runs = arguments['bboxes'].device.type, 20 * rounds
    num_cells, products = count_products(arguments)
    a, b = torch.randn(1024, 1024, device=device), torch.randn(1024, 1024, device=device)
    bitmaps = torch.empty(len(arguments['bboxes']), *arguments['ori_shape'], dtype=torch.bool, device=device)

    def best_ms(method: Method) -> float:
        return min(run_once(method, device) for _ in range(runs))

    product_ms = best_ms(partial(torch.mm, a, b)) * products / 1024**3
    rle_ms = best_ms(partial(ops.instance_rles, **arguments))
    zero_ms = best_ms(bitmaps.zero_)
    masks_ms = best_ms(partial(ops.instance_masks, **arguments))
    return (
        f'Lower bounds, each the best of {runs} runs. The boxes contain {num_cells:,} cells, which take '
        f'{products / 1e6:.1f} million multiplications: {product_ms:.2f} ms at the speed of a matrix product on this '
        f'machine. Our run lengths take {rle_ms:.2f} ms. The bitmaps have {bitmaps.numel() / 1e6:.1f} MB, which take '
        f'{zero_ms:.2f} ms to fill with zeros in memory that is already mapped. Ours take {masks_ms:.2f} ms in total'
        f'{"; their memory is mapped page by page where boxes are." if device == "cpu" else "."}'
    )


def format_costs(num_detections: int, ori_shape: tuple[int, int], costs: dict[str, Cost]) -> list[str]:
    """Format the costs of a case as a Markdown table.

    Args:
        num_detections: Detections in the image.
        ori_shape: Size of the original image.
        costs: Costs by names of methods.
    """
    rle_ms = costs['kernels, RLE'].ms
    bitmaps_ms = costs['kernels, bitmaps'].ms if 'kernels, bitmaps' in costs else math.nan
    height, width = ori_shape
    lines = [
        f'{num_detections} detections, {height}x{width} result ({"x".join(map(str, IMG_SHAPES[ori_shape]))} input):',
        '',
        '| | ms | against our kernels | MB beyond the result |',
        '| --- | ---: | ---: | ---: |',
    ]
    for name, cost in costs.items():
        kernels_ms = bitmaps_ms if name.endswith('bitmaps') else rle_ms
        lines.append(f'| {name} | {cost.ms:.2f} | {cost.ms / kernels_ms:.1f} | {cost.extra_bytes / 2**20:.1f} |')
    return [*lines, '']


def format_tables(cases: Sequence[int], device: str, rounds: int, memory_limit: float) -> Iterator[str]:
    """Measure cases and yield the table of each.

    Args:
        cases: Indices into :data:`CASES`.
        device: Device to compute on.
        rounds: Turns of each method in case 0; other cases have a third of them.
        memory_limit: Bytes above which a method is left out of a case.
    """
    for i in cases:
        arguments = draw_arguments(*CASES[i], device)
        methods = make_methods(arguments, memory_limit)
        # On a GPU, what libraries allocate in a method's first call stays.
        left_out = '' if device == 'cpu' else warm_up(methods)
        costs = measure_methods(methods, device, rounds if i == 0 else max(1, rounds // 3))
        del methods
        lines = format_costs(*CASES[i], costs)
        if i == 0:
            lines += [measure_floor(arguments, rounds), '']
        if left_out:
            lines += [left_out, '']
        yield '\n'.join(lines)


def describe_tables(device: str, memory_gb: float) -> str:
    """Describe what the tables show and on which machine it was measured."""
    return (
        f'`tools/analysis_tools/benchmark_masks.py --device {device}`. Medians of methods that take turns in one '
        'process. "Kernels" are the extension; "plain" is our PyTorch code without the extension, one instance after '
        'another; "at once" is the same for all instances in one tensor. The mask stages of other models start at the '
        f'outputs of their networks. Methods that need more than {memory_gb:g} GB are left out. Measure on an idle '
        'machine: other work makes all times longer, and long runs more so than short ones. On a busy machine, set '
        f'`OMP_WAIT_POLICY=passive`. {NOTES["cpu" if device == "cpu" else "gpu"]}'
        f'\n\n{describe_machine(device)}{describe_load()}\n'
    )
