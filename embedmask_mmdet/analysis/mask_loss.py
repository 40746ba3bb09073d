"""Measure time and memory of the mask loss, and of the same loss in plain PyTorch.

Forward and backward from pixel embeddings and proposals to their gradients. On the CPU each measurement runs in its own
process, and memory is the highest amount that the process takes beyond its inputs; on a GPU, that of PyTorch's
allocator.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.analysis import plain_loss
from embedmask_mmdet.analysis.machine import read_growth, reset_peak
from embedmask_mmdet.models import EmbedMaskLocationFrame, EmbedMaskMaskHead
from embedmask_mmdet.models.losses.lovasz_hinge import has_error

EMBED_DIM, STRIDE, MASK_SCALE = 16, 8, 2
HEADER = (
    '| case | pixels with error | plain | lean | times faster | plain | lean | times smaller |\n'
    '| --- | --- | --- | --- | --- | --- | --- | --- |'
)


class Batch(NamedTuple):
    """Inputs of the mask loss: pixel embeddings ``(B, D, h, w)``, and locations and ground truth of each image."""

    pixel_embeds: Tensor
    positives: list[InstanceData]
    gts: list[InstanceData]

    def leaves(self) -> list[Tensor]:
        """Return the tensors that get gradients."""
        names = ('proposal_embed', 'proposal_margin')
        return [self.pixel_embeds, *(positives[name] for positives in self.positives for name in names)]

    def clear_gradients(self) -> None:
        """Free the gradients."""
        for tensor in self.leaves():
            tensor.grad = None


@dataclass(frozen=True)
class Case:
    """What a batch is drawn from.

    Args:
        weights: ``'fresh'`` or ``'trained'``, see :func:`draw_embeddings`.
        num_imgs: Images in the batch.
        num_instances: Instances in each image.
        img_shape: Height and width of the images in input pixels.
        device: Device of the embeddings.
    """

    weights: str
    num_imgs: int
    num_instances: int
    img_shape: tuple[int, int]
    device: str

    @property
    def label(self) -> str:
        """Name of the table's row."""
        return f'{self.num_imgs} x {self.num_instances} instances, {self.weights}'


class Cost(NamedTuple):
    """Best seconds, MB beyond the inputs, and value of a loss."""

    seconds: float
    megabytes: float
    loss: float


def draw_masks(num_instances: int, img_shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw ellipses of 30 to 300 input pixels that occlude each other, uint8 ``(N, H, W)``."""
    masks = np.zeros((num_instances, *img_shape), np.uint8)
    for mask in masks:
        center = [int(rng.integers(size)) for size in img_shape[::-1]]
        axes = [int(rng.integers(15, 150)) for _ in range(2)]
        cv2.ellipse(mask, center, axes, float(rng.integers(180)), 0, 360, 1, -1)
    return masks * (masks.cumsum(axis=0) == 1)


def embed_positions(grid: tuple[int, int]) -> Tensor:
    """Compute the initial spatial embedding of each cell, ``(2, h, w)``."""
    return EmbedMaskLocationFrame().embed_cells(grid, STRIDE).detach()


def draw_fresh_embeddings(cells: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pixel and proposal embeddings as initial weights give them: positions, and noise on all channels."""
    num_instances, *grid = cells.shape
    position = embed_positions(tuple(grid))
    pixel_embed = 0.34 * torch.randn(EMBED_DIM, *grid, generator=rng)
    proposal_embed = 0.34 * torch.randn(num_instances, EMBED_DIM, generator=rng)
    pixel_embed[:2] += position
    share = cells / cells.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    proposal_embed[:, :2] += share.flatten(1) @ position.flatten(1).t()
    return pixel_embed, proposal_embed


def draw_trained_embeddings(cells: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a code for each instance and one for the background. One cell in twelve has the code of another instance."""
    num_instances, *grid = cells.shape
    noise, _ = draw_fresh_embeddings(cells, rng)
    proposal_embed = 6 * torch.randn(num_instances, EMBED_DIM, generator=rng)
    owner = torch.cat([torch.full((1, *grid), 0.5), cells]).argmax(dim=0)
    other = torch.randint(num_instances + 1, grid, generator=rng)
    owner = torch.where(torch.rand(grid, generator=rng) < 1 / 12, other, owner)
    codes = torch.cat([torch.zeros(1, EMBED_DIM), proposal_embed])
    return 0.1 * noise + codes[owner].permute(2, 0, 1), proposal_embed


DRAW_EMBEDDINGS = {'fresh': draw_fresh_embeddings, 'trained': draw_trained_embeddings}


def draw_batch(case: Case) -> Batch:
    """Draw a batch, the same for each call with the same case."""
    numpy_rng, rng = np.random.default_rng(0), torch.Generator().manual_seed(0)
    pixel_embeds, batch_positives, gts = [], [], []
    for img in range(case.num_imgs):
        masks = draw_masks(case.num_instances, case.img_shape, numpy_rng)
        cells = torch.from_numpy(masks[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]).float()
        pixel_embed, proposal_embed = DRAW_EMBEDDINGS[case.weights](cells, rng)
        positives = InstanceData(
            img_inds=torch.full((len(masks),), img),
            gt_inds=torch.arange(len(masks)),
            proposal_embed=proposal_embed,
            proposal_margin=torch.full((len(masks), EMBED_DIM), 0.1733),
        )
        pixel_embeds.append(pixel_embed)
        batch_positives.append(positives.to(case.device))
        gts.append(InstanceData(masks=BitmapMasks(masks, *case.img_shape)))
    batch = Batch(torch.stack(pixel_embeds).to(case.device), batch_positives, gts)
    for tensor in batch.leaves():
        tensor.requires_grad_()
    return batch


def build_lean_loss() -> Callable[[Batch], Tensor]:
    """Return the loss of the mask head."""
    head = EmbedMaskMaskHead(in_channels=32, feat_channels=32, stride=STRIDE, mask_scale=MASK_SCALE)

    def compute_loss(batch: Batch) -> Tensor:
        return head.loss_by_feat(batch.pixel_embeds, InstanceData.cat(batch.positives), batch.gts)['loss_mask']

    return compute_loss


def build_plain_loss() -> Callable[[Batch], Tensor]:
    """Return the loss in plain PyTorch."""

    def compute_loss(batch: Batch) -> Tensor:
        masks = [torch.from_numpy(gt.masks.masks).to(batch.pixel_embeds.device) for gt in batch.gts]
        return plain_loss.mask_loss(batch.pixel_embeds, masks, batch.positives, MASK_SCALE, STRIDE // MASK_SCALE)

    return compute_loss


LOSSES = {'plain': build_plain_loss, 'lean': build_lean_loss}


@torch.no_grad()
def compute_error_share(batch: Batch) -> float:
    """Compute which share of the first image's pixels has a hinge error above 0; the lean loss sorts only these."""
    embeds = torch.nn.functional.interpolate(batch.pixel_embeds[:1], scale_factor=MASK_SCALE, mode='bilinear')
    positives = batch.positives[0]
    log_prob = plain_loss.embedding_log_prob(embeds[0], positives.proposal_embed, positives.proposal_margin)
    masks = torch.from_numpy(batch.gts[0].masks.masks).to(log_prob.device)
    target = [plain_loss.resize_mask(mask, log_prob.shape[1:], STRIDE // MASK_SCALE) for mask in masks]
    return float(has_error(log_prob, torch.stack(target)).float().mean())


def run_loss(loss: Callable[[Batch], Tensor], batch: Batch) -> tuple[float, float]:
    """Compute a loss and its gradients. Return the seconds it takes, and its value."""
    batch.clear_gradients()
    start = time.perf_counter()
    value = loss(batch)
    value.backward()
    if batch.pixel_embeds.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, value.item()


def measure_loss(name: str, case: Case, threads: int, repeats: int) -> Cost:
    """Measure a loss in this process.

    Args:
        name: Key of :data:`LOSSES`.
        case: What the batch is drawn from.
        threads: CPU threads.
        repeats: Runs, of which the fastest counts.
    """
    torch.set_num_threads(threads)
    batch, loss = draw_batch(case), LOSSES[name]()
    if batch.pixel_embeds.is_cuda:
        run_loss(loss, batch)  # the workspaces of libraries, which the first call allocates, stay
        batch.clear_gradients()
    before = reset_peak(case.device)
    _, value = run_loss(loss, batch)
    growth = read_growth(case.device, before)
    seconds = min(run_loss(loss, batch)[0] for _ in range(repeats))
    return Cost(seconds, growth / 2**20, value)


def _put_cost(queue: multiprocessing.Queue, *args) -> None:
    queue.put(measure_loss(*args))


def measure_in_process(name: str, case: Case, threads: int, repeats: int) -> Cost:
    """Measure a loss in a new process.

    Raises:
        RuntimeError: If the process fails, for example because memory runs out.
    """
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=_put_cost, args=(queue, name, case, threads, repeats))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f'the {name} loss ended with exit code {process.exitcode} on {case}')
    return queue.get()


def measure(name: str, case: Case, threads: int, repeats: int) -> Cost:
    """Measure a loss: on the CPU in a new process, whose memory nothing else has used."""
    return (measure_in_process if case.device == 'cpu' else measure_loss)(name, case, threads, repeats)


def format_costs(case: Case, lean: Cost, plain: Cost | None) -> str:
    """Format a row of the table.

    Raises:
        RuntimeError: If the two losses differ.
    """
    share = f'{compute_error_share(draw_batch(case)):.1%}'
    lean_time, lean_memory = f'{lean.seconds * 1e3:.0f} ms', f'{lean.megabytes:.0f} MB'
    if plain is None:
        cells = ['', lean_time, '', '', lean_memory, '']
    elif abs(lean.loss - plain.loss) > 1e-4 * abs(plain.loss):
        raise RuntimeError(f'the losses differ: {lean.loss} and {plain.loss}')
    else:
        speed, size = f'{plain.seconds / lean.seconds:.1f}', f'{plain.megabytes / lean.megabytes:.1f}'
        plain_time, plain_memory = f'{plain.seconds * 1e3:.0f} ms', f'{plain.megabytes:.0f} MB'
        cells = [plain_time, lean_time, speed, plain_memory, lean_memory, size]
    return f'| {" | ".join([case.label, share, *cells])} |'


def format_table(cases: list[Case], crowded_cases: list[Case], threads: int, repeats: int) -> Iterator[str]:
    """Measure all cases and yield the lines of a Markdown table.

    Args:
        cases: Cases in which both losses are measured.
        crowded_cases: Cases in which the plain loss is left out, as it takes too much memory.
        threads: CPU threads.
        repeats: Runs, of which the fastest counts.
    """
    yield HEADER
    for case in cases:
        lean, plain = (measure(name, case, threads, repeats) for name in ('lean', 'plain'))
        yield format_costs(case, lean, plain)
    for case in crowded_cases:
        yield format_costs(case, measure('lean', case, threads, repeats), None)
