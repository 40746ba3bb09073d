"""Time the mask stage of inference, from the network's outputs to COCO run lengths and to bitmaps, and that of others.

Our kernels, our plain PyTorch path, the same written straight for all instances at once, and the mask stages of
MMDetection's Mask R-CNN, CondInst and SOLOv2 take turns in one process; weights and features are random. The table goes
to docs/benchmarks.md, below the description of the machine.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures.mask import encode_mask_results
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from measuring import (  # noqa: E402
    describe_load,
    describe_machine,
    draw_sides,
    load_installed_config,
    read_memory,
    write_section,
)

from embedmask_mmdet import ops  # noqa: E402
from embedmask_mmdet.ops import plain  # noqa: E402
from embedmask_mmdet.ops.mask_stage import MaskStage, box_cells  # noqa: E402

STRIDE, UPSCALE, CHANNELS = 8, 2, 16
SECTION = 'The mask stage of inference'
IMG_SHAPES = {(480, 640): (800, 1067), (1080, 1920): (750, 1333), (3000, 4000): (800, 1067)}
CASES = [
    (100, (480, 640)),
    (10, (480, 640)),
    (300, (480, 640)),
    (1000, (480, 640)),
    (100, (1080, 1920)),
    (100, (3000, 4000)),
]
Method = Callable[[], object]


def draw_bboxes(instances: int, img_shape: tuple[int, int]) -> Tensor:
    """Draw boxes ``(N, 4)`` with log-normal sides around 110 input pixels, clipped to the image."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor(img_shape[::-1])
    centres = torch.rand(instances, 2, generator=generator) * size
    sides = draw_sides(instances, generator)
    return torch.cat([centres - sides / 2, centres + sides / 2], 1).clamp(min=0).minimum(size.repeat(2).float())


def draw_arguments(instances: int, ori_shape: tuple[int, int], device: str) -> dict:
    """Draw the arguments of `instance_masks`: wavy ellipses that fill about half of their boxes."""
    generator = torch.Generator().manual_seed(1)
    img_shape = IMG_SHAPES[ori_shape]
    bboxes = draw_bboxes(instances, img_shape)
    h, w = (math.ceil(size / 32) * 32 // STRIDE for size in img_shape)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
    position = (torch.stack([x, y]) + 0.5) * STRIDE / 100
    other = F.interpolate(torch.randn(1, CHANNELS - 2, h // 4, w // 4, generator=generator), (h, w), mode='bicubic')[0]
    centres, sides = (bboxes[:, :2] + bboxes[:, 2:]) / 200, (bboxes[:, 2:] - bboxes[:, :2]).clamp(min=8) / 100
    cell = [((centres[:, i] * 100 / STRIDE).long()).clamp(max=size - 1) for i, size in ((1, h), (0, w))]
    margin = torch.cat([-math.log(0.53) / (0.45 * sides) ** 2, torch.full((instances, CHANNELS - 2), 0.01)], 1)
    tensors = dict(
        pixel_embed=torch.cat([position, other]),
        proposal_embed=torch.cat([centres, other[:, cell[0], cell[1]].T], 1),
        proposal_margin=margin,
        bboxes=bboxes,
    )
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    return dict(**tensors, stride=STRIDE, img_shape=img_shape, ori_shape=ori_shape, upscale=UPSCALE)


def masks_at_once(arguments: dict) -> Tensor:
    """Compute the masks as one writes it straight down: all instances, pixels and channels at once."""
    stage = MaskStage(**arguments)
    resized = F.interpolate(stage.pixel_embed[None], stage.cell_shape, mode='bilinear')[0]
    log_prob = plain.embedding_log_prob(resized, stage.proposal_embed, stage.proposal_margin)
    log_prob.masked_fill_(~ops.inside_boxes(stage.bboxes, stage.cell_shape, stage.cell), stage.outside_value)
    ori_h, ori_w = stage.ori_shape
    log_prob = F.interpolate(log_prob[None], stage.resized_shape, mode='bilinear')[0, :, :ori_h, :ori_w]
    return log_prob > stage.log_thr


def encode(masks: Tensor) -> list[dict]:
    """Encode masks as MMDetection does."""
    return encode_mask_results(masks.cpu().numpy())


def image_meta(arguments: dict) -> dict:
    """Describe the image as MMDetection's heads want it."""
    (h, w), (ori_h, ori_w) = arguments['img_shape'], arguments['ori_shape']
    return dict(img_shape=(h, w), ori_shape=(ori_h, ori_w), scale_factor=(w / ori_w, h / ori_h))


def mask_rcnn(arguments: dict) -> Method:
    """Mask R-CNN from the feature pyramid: RoIAlign, mask head, pasting, run lengths."""
    cfg = load_installed_config('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    head = MODELS.build(dict(**cfg.roi_head, train_cfg=None, test_cfg=cfg.test_cfg.rcnn)).eval()
    device, (h, w) = arguments['bboxes'].device, (size * STRIDE for size in arguments['pixel_embed'].shape[1:])
    head, features = head.to(device), [torch.randn(1, 256, h // s, w // s, device=device) for s in (4, 8, 16, 32)]
    labels = torch.zeros(len(arguments['bboxes']), dtype=torch.long, device=device)

    def run() -> list[dict]:
        results = InstanceData(bboxes=arguments['bboxes'].clone(), labels=labels)
        results = head.predict_mask(features, [image_meta(arguments)], [results], rescale=True)
        return encode(results[0].masks)

    return run


def condinst(arguments: dict) -> Method:
    """CondInst from its mask features and each instance's parameters: dynamic convolutions, resizes, run lengths."""
    cfg = load_installed_config('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py').model
    head = MODELS.build(dict(**cfg.mask_head, train_cfg=None, test_cfg=cfg.test_cfg)).eval()
    bboxes, (h, w) = arguments['bboxes'], arguments['pixel_embed'].shape[1:]
    head = head.to(bboxes.device)
    features = torch.randn(8, h, w, device=bboxes.device)
    positives = InstanceData(
        param_preds=0.1 * torch.randn(len(bboxes), 169, device=bboxes.device),
        points=(bboxes[:, :2] + bboxes[:, 2:]) / 2,
        strides=torch.full((len(bboxes),), 8, device=bboxes.device),
    )

    def run() -> list[dict]:
        mask_preds = head.forward_single(features, positives)
        results = [InstanceData(bboxes=bboxes.clone())]
        return encode(head.predict_by_feat(mask_preds, results, [image_meta(arguments)])[0].masks)

    return run


def solov2(arguments: dict) -> Method:
    """SOLOv2 from its mask features and each instance's kernel: convolution, matrix NMS, resizes, run lengths."""
    cfg = load_installed_config('solov2/solov2_r50_fpn_1x_coco.py').model
    instances, device = len(arguments['bboxes']), arguments['bboxes'].device
    test_cfg = dict(**cfg.test_cfg)
    test_cfg.update(nms_pre=instances, max_per_img=instances, filter_thr=0)
    head = MODELS.build(dict(**cfg.mask_head, train_cfg=None, test_cfg=Config(test_cfg))).eval().to(device)
    h, w = (2 * size for size in arguments['pixel_embed'].shape[1:])
    features = torch.randn(1, 256, h, w, device=device)
    kernels = torch.randn(3872, head.kernel_out_channels, device=device)
    scores = torch.zeros(3872, 80, device=device)
    scores[:instances, 0] = 0.9

    def run() -> list[dict]:
        result = head._predict_by_feat_single(kernels, scores, features, image_meta(arguments))
        assert len(result) == instances
        return encode(result.masks)

    return run


def estimated_bytes(name: str, arguments: dict) -> int:
    """Estimate what a method takes, so that one which would not fit is left out."""
    instances, (h, w) = len(arguments['bboxes']), arguments['img_shape']
    original, cells = math.prod(arguments['ori_shape']), h * w // 16
    each = {
        'kernels, RLE': 0,
        'kernels, bitmaps': original,
        'plain, RLE': original,
        'plain, bitmaps': original,
        'at once, RLE': 8 * cells * CHANNELS + 6 * original,
        'at once, bitmaps': 8 * cells * CHANNELS + 6 * original,
        'Mask R-CNN, RLE': original + 20 * 256 * 14 * 14,
        'CondInst, RLE': 12 * h * w + 6 * original,
        'SOLOv2, RLE': 12 * h * w + 6 * original,
    }
    return instances * each[name]


def make_methods(arguments: dict, memory_limit: float) -> dict[str, Method]:
    """Make what is measured, without what needs more than ``memory_limit`` bytes."""
    makers = {
        'kernels, RLE': lambda: partial(ops.instance_rles, **arguments),
        'kernels, bitmaps': lambda: partial(ops.instance_masks, **arguments),
        'plain, RLE': lambda: partial(plain.instance_rles, MaskStage(**arguments)),
        'plain, bitmaps': lambda: partial(plain.instance_masks, MaskStage(**arguments)),
        'at once, RLE': lambda: lambda: encode(masks_at_once(arguments)),
        'at once, bitmaps': lambda: partial(masks_at_once, arguments),
        'Mask R-CNN, RLE': partial(mask_rcnn, arguments),
        'CondInst, RLE': partial(condinst, arguments),
        'SOLOv2, RLE': partial(solov2, arguments),
    }
    return {name: make() for name, make in makers.items() if estimated_bytes(name, arguments) <= memory_limit}


def run_once(method: Method, device: str) -> float:
    """Run a method and return its milliseconds."""
    start = time.perf_counter()
    method()
    if device != 'cpu':
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def result_bytes(result: object) -> int:
    """Count the bytes that a method returns."""
    return result.numel() if isinstance(result, Tensor) else sum(len(rle['counts']) for rle in result)


def extra_bytes(method: Method, device: str) -> int:
    """Measure the most that a method takes beyond what it returns."""
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = method()
        on_device = result_bytes(result) if isinstance(result, Tensor) else 0
        return torch.cuda.max_memory_allocated() - before - on_device
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else memory that is kept for later hides what is taken
    Path('/proc/self/clear_refs').write_text('5')  # forgets the highest memory so far
    before = read_memory('VmRSS')
    result = method()
    return max(0, read_memory('VmHWM') - before - result_bytes(result))


def measure(methods: dict[str, Method], device: str, rounds: int) -> dict[str, tuple[float, int]]:
    """Measure median milliseconds and extra bytes of methods that take turns; quick ones run several times a turn."""
    timings, extra = {}, {}
    for name, method in methods.items():
        if name.startswith('kernels'):
            run_once(method, device)  # their memory is so little that what a first call sets up would show
        extra[name] = extra_bytes(method, device)
        timings[name] = []
    for _ in range(rounds):
        for name, method in methods.items():
            until = time.perf_counter() + 0.1
            timings[name].append(run_once(method, device))
            while time.perf_counter() < until:
                timings[name].append(run_once(method, device))
    return {name: (statistics.median(timings[name]), extra[name]) for name in methods}


def measure_floor(arguments: dict, rounds: int) -> str:
    """Compare with what this machine needs for the multiplications inside the boxes, and to write the bitmaps."""
    device, grid = arguments['bboxes'].device.type, arguments['pixel_embed'].shape[1:]
    cells = box_cells(arguments['bboxes'], [UPSCALE * size for size in grid], STRIDE / UPSCALE)
    cells = int(((cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])).sum())
    # A channel of a cell: half a resize along x (shared by the rows above and below), one along y, square, margin.
    products = cells * CHANNELS * 3.5
    a, b = torch.randn(1024, 1024, device=device), torch.randn(1024, 1024, device=device)
    bitmaps = torch.empty(len(arguments['bboxes']), *arguments['ori_shape'], dtype=torch.bool, device=device)

    def best(method: Method) -> float:
        return min(run_once(method, device) for _ in range(20 * rounds))

    product_ms = best(partial(torch.mm, a, b)) * products / 1024**3
    rle_ms = best(partial(ops.instance_rles, **arguments))
    return (
        f'The floor, from the best of {20 * rounds} runs each. The boxes hold {cells:,} cells, {products / 1e6:.1f} '
        f'million multiplications: {product_ms:.2f} ms at the rate of a matrix product on this machine; our run '
        f'lengths take {rle_ms:.2f} ms. The bitmaps are {bitmaps.numel() / 1e6:.1f} MB, which take '
        f'{best(bitmaps.zero_):.2f} ms to fill with zeros where their memory is already there; ours are pages that the '
        f'system maps as boxes touch them, {best(partial(ops.instance_masks, **arguments)):.2f} ms with all else.'
    )


def format_case(instances: int, ori_shape: tuple[int, int], runs: dict[str, tuple[float, int]]) -> list[str]:
    """Format a case as a table in Markdown."""
    rle, bitmaps = runs['kernels, RLE'][0], runs['kernels, bitmaps'][0] if 'kernels, bitmaps' in runs else math.nan
    h, w = ori_shape
    lines = [
        f'{instances} detections, {h}x{w} result ({"x".join(map(str, IMG_SHAPES[ori_shape]))} input):',
        '',
        '| | ms | against our kernels | MB beyond the result |',
        '| --- | ---: | ---: | ---: |',
    ]
    for name, (ms, extra) in runs.items():
        ours = bitmaps if name.endswith('bitmaps') else rle
        lines.append(f'| {name} | {ms:.2f} | {ms / ours:.1f} | {extra / 2**20:.1f} |')
    return [*lines, '']


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument(
        '--rounds', type=int, default=5, help='turns that each method takes in case 0; a third in others'
    )
    parser.add_argument('--cases', type=int, nargs='*', help='numbers of the cases, from 0; all by default')
    parser.add_argument('--memory', type=float, default=4, help='GB above which a method is left out of a case')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'benchmarks.md')
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Measure, print and write the tables."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    if ops.kernels is None or args.device not in ops.kernels.DEVICES:
        raise SystemExit(f"the extension has no kernels for '{args.device}': build it first, see setup.py")
    title = SECTION if args.device == 'cpu' else f'{SECTION}, on a GPU'
    lines = [
        f'`tools/analysis_tools/benchmark_masks.py --device {args.device}`. Medians of methods that take turns in one '
        'process. "Plain" is the path that serves without the extension, one instance at a time; "at once" is the same '
        'for all instances together. The others begin with what their mask stage is given by the rest of '
        f'the network. What needs more than {args.memory:g} GB is left out. Run it on an idle machine, with '
        '`OMP_WAIT_POLICY=passive` where it is not: load stretches everything, and what runs long more than what is '
        'brief. The time of large bitmaps is mostly that of mapping their pages.',
        '',
        describe_machine(args.device) + describe_load(),
        '',
    ]
    for i in range(len(CASES)) if args.cases is None else args.cases:
        arguments = draw_arguments(*CASES[i], args.device)
        methods = make_methods(arguments, args.memory * 1e9)
        runs = measure(methods, args.device, args.rounds if i == 0 else max(1, args.rounds // 3))
        case = format_case(*CASES[i], runs)
        if i == 0:
            case += [measure_floor(arguments, args.rounds), '']
        print('\n'.join(case), flush=True)
        lines += case
        del methods, arguments
    write_section(args.out, title, '\n'.join(lines))


if __name__ == '__main__':
    main()
