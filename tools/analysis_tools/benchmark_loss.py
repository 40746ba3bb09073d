"""Measure the mask loss against its plain formulation, which the tests keep as their oracle.

Each measurement runs in a process of its own: forward and backward from pixel embeddings and proposals to their
gradients, masks included. Memory is what the process takes beyond its inputs at the worst moment.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor

warnings.filterwarnings('ignore', '.*meshgrid')

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from measuring import read_memory  # noqa: E402

from embedmask_mmdet.models import EmbedMaskMaskHead  # noqa: E402
from embedmask_mmdet.models.embedding import PositionEmbedding  # noqa: E402
from embedmask_mmdet.models.lovasz_hinge_loss import has_error  # noqa: E402
from embedmask_mmdet.targets import mask_targets  # noqa: E402
from tests.training import oracle  # noqa: E402

EMBED_DIM, STRIDE, MASK_SCALE = 16, 8, 2
Case = tuple[Tensor, list[InstanceData], list[InstanceData]]


def draw_masks(num_instances: int, img_shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw ellipses of 30 to 300 input pixels that hide each other, uint8 ``(N, H, W)``."""
    masks = np.zeros((num_instances, *img_shape), np.uint8)
    for mask in masks:
        center = [int(rng.integers(size)) for size in img_shape[::-1]]
        axes = [int(rng.integers(15, 150)) for _ in range(2)]
        cv2.ellipse(mask, center, axes, float(rng.integers(180)), 0, 360, 1, -1)
    return masks * (masks.cumsum(axis=0) == 1)


def embed_image(masks: np.ndarray, weights: str, rng: torch.Generator) -> tuple[Tensor, InstanceData]:
    """Make one image's embeddings.

    Args:
        masks: uint8 ``(N, H, W)``.
        weights: ``'fresh'``: positions, and what convolutions of normal(0, 0.01) add to them. ``'trained'``: a code for
            each instance and one for the background, which blend at the masks' edges; one cell in twelve has the code
            of another instance.
        rng: What numbers are drawn from.

    Returns:
        Pixel embedding ``(D, h, w)``, and one positive for each instance.
    """
    grid = (masks.shape[1] // STRIDE, masks.shape[2] // STRIDE)
    cells = torch.from_numpy(masks[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]).float()
    position = PositionEmbedding()(grid, STRIDE).detach()
    pixel_embed = 0.34 * torch.randn(EMBED_DIM, *grid, generator=rng)
    proposal_embed = 0.34 * torch.randn(len(masks), EMBED_DIM, generator=rng)
    pixel_embed[:2] += position
    share = cells / cells.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    proposal_embed[:, :2] += share.flatten(1) @ position.flatten(1).t()
    if weights == 'trained':
        proposal_embed = 6 * torch.randn(len(masks), EMBED_DIM, generator=rng)
        owner = torch.cat([torch.full((1, *grid), 0.5), cells]).argmax(dim=0)
        confused = torch.randint(len(masks) + 1, grid, generator=rng)
        owner = torch.where(torch.rand(grid, generator=rng) < 1 / 12, confused, owner)
        codes = torch.cat([torch.zeros(1, EMBED_DIM), proposal_embed])
        pixel_embed = 0.1 * pixel_embed + codes[owner].permute(2, 0, 1)
    return pixel_embed, InstanceData(
        gt_inds=torch.arange(len(masks)),
        proposal_embed=proposal_embed,
        proposal_margin=torch.full((len(masks), EMBED_DIM), 0.1733),
    )


def make_case(weights: str, num_imgs: int, num_instances: int, img_shape: tuple[int, int], device: str) -> Case:
    """Make pixel embeddings, positives and ground truth of a batch."""
    numpy_rng, rng = np.random.default_rng(0), torch.Generator().manual_seed(0)
    pixel_embeds, positive_infos, gts = [], [], []
    for _ in range(num_imgs):
        masks = draw_masks(num_instances, img_shape, numpy_rng)
        pixel_embed, positives = embed_image(masks, weights, rng)
        pixel_embeds.append(pixel_embed)
        positive_infos.append(positives.to(device))
        gts.append(InstanceData(masks=BitmapMasks(masks, *img_shape)))
    for positives in positive_infos:
        positives.proposal_embed.requires_grad_()
        positives.proposal_margin.requires_grad_()
    return torch.stack(pixel_embeds).to(device).requires_grad_(), positive_infos, gts


def lean_loss() -> Callable[..., Tensor]:
    """Return the loss of the mask head."""
    head = EmbedMaskMaskHead(in_channels=32, feat_channels=32, stride=STRIDE, mask_scale=MASK_SCALE)

    def loss(pixel_embeds: Tensor, positive_infos: list[InstanceData], gts: list[InstanceData]) -> Tensor:
        return head.loss_by_feat(pixel_embeds, gts, [], positive_infos)['loss_mask']

    return loss


def plain_loss() -> Callable[..., Tensor]:
    """Return the plain formulation."""

    def loss(pixel_embeds: Tensor, positive_infos: list[InstanceData], gts: list[InstanceData]) -> Tensor:
        masks = [torch.from_numpy(gt.masks.masks).to(pixel_embeds.device) for gt in gts]
        return oracle.mask_loss(pixel_embeds, masks, positive_infos, MASK_SCALE, STRIDE // MASK_SCALE)

    return loss


LOSSES = {'plain': plain_loss, 'lean': lean_loss}


def share_with_error(case: Case) -> float:
    """Tell what share of all pixels the loss has to sort."""
    pixel_embeds, positive_infos, gts = case
    embeds = torch.nn.functional.interpolate(pixel_embeds, scale_factor=MASK_SCALE, mode='bilinear')
    with torch.no_grad():
        log_prob = oracle.embedding_log_prob(
            embeds[0], positive_infos[0].proposal_embed, positive_infos[0].proposal_margin
        )
    target = mask_targets(gts[0].masks, log_prob.shape[1:], STRIDE // MASK_SCALE).to(log_prob.device)
    return float(has_error(log_prob, target).float().mean())


def measure(name: str, case_args: tuple, threads: int, repeats: int, queue: multiprocessing.Queue) -> None:
    """Put seconds (the best of ``repeats``), MB and the loss into ``queue``."""
    torch.set_num_threads(threads)
    case, loss = make_case(*case_args), LOSSES[name]()
    on_gpu = case[0].is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path('/proc/self/clear_refs').write_text('5')  # forgets the highest memory so far
    before = torch.cuda.memory_allocated() / 2**20 if on_gpu else read_memory('VmRSS') / 2**20
    seconds = []
    for i in range(1 + repeats):
        for tensor in leaves(case):
            tensor.grad = None
        start = time.perf_counter()
        value = loss(*case)
        value.backward()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if i == 0:
            most = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else read_memory('VmHWM') / 2**20
    queue.put((min(seconds[1:]), most - before, value.item()))


def leaves(case: Case) -> list[Tensor]:
    """List the tensors that gradients are taken for."""
    return [case[0], *(info[name] for info in case[1] for name in ('proposal_embed', 'proposal_margin'))]


def run(name: str, case_args: tuple, args: argparse.Namespace) -> tuple[float, float, float]:
    """Measure one loss in a process of its own."""
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=measure, args=(name, case_args, args.threads, args.repeats, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f'the {name} loss ended with exit code {process.exitcode} on {case_args}')
    return queue.get()


def print_row(label: str, case_args: tuple, args: argparse.Namespace, with_plain: bool) -> None:
    """Print a line of the table, in Markdown."""
    share = share_with_error(make_case(*case_args))
    lean = run('lean', case_args, args)
    texts = [f'{lean[0] * 1e3:.0f} ms', f'{lean[1]:.0f} MB']
    if with_plain:
        plain = run('plain', case_args, args)
        if abs(lean[2] - plain[2]) > 1e-4 * abs(plain[2]):
            raise SystemExit(f'the losses differ: {lean[2]} and {plain[2]}')
        texts = [f'{plain[0] * 1e3:.0f} ms', texts[0], f'{plain[0] / lean[0]:.1f}', f'{plain[1]:.0f} MB', texts[1]]
        texts.append(f'{plain[1] / lean[1]:.1f}')
    else:
        texts = ['', texts[0], '', '', texts[1], '']
    print('|', ' | '.join([label, f'{share:.1%}', *texts]), '|', flush=True)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--img-shape', type=int, nargs=2, default=(800, 1088), metavar=('H', 'W'))
    parser.add_argument('--batch-size', type=int, default=2, help='images')
    parser.add_argument('--instances', type=int, default=20, help='in each image')
    parser.add_argument('--crowd', type=int, default=300, help='instances of the crowded image; 0 to leave it out')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    args = parse_args()
    shape = tuple(args.img_shape)
    print('| case | pixels with error | plain | lean | times faster | plain | lean | times smaller |')
    print('| --- | --- | --- | --- | --- | --- | --- | --- |')
    for weights in ('fresh', 'trained'):
        label = f'{args.batch_size} x {args.instances} instances, {weights}'
        print_row(label, (weights, args.batch_size, args.instances, shape, args.device), args, with_plain=True)
    if args.crowd:
        for weights in ('fresh', 'trained'):
            label = f'1 x {args.crowd} instances, {weights}'
            print_row(label, (weights, 1, args.crowd, shape, args.device), args, with_plain=False)


if __name__ == '__main__':
    main()
