"""The models that take turns, and what is measured of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.runner import load_checkpoint, set_random_seed
from torch import nn

from embedmask_mmdet.analysis.configs import drop_pretrained, load_installed_config, walk_dicts
from embedmask_mmdet.analysis.end_to_end.fixed_detections import FixedDetections, keep_all_candidates
from embedmask_mmdet.analysis.end_to_end.options import RIVALS, Options
from embedmask_mmdet.analysis.end_to_end.stages import StageClock, watch_stages
from embedmask_mmdet.analysis.operators import explain_failure
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.inference.speed import speed_up

MASK_FORMATS = {'bitmap': 'bitmaps', 'rle': 'RLE'}
FAST = 'RLE, speed_up'  # the model after that function


@dataclass
class Contestant:
    """A model with its data, and what was measured of it.

    Args:
        name: Title of its column.
        model: The model, on its device and in evaluation mode.
        dataset: Test images with the pipeline of the model.
        evaluator: Metrics that get the detections.
        clock: Clock that the stages of the model use.
        autocast: Context of its inference.
        fixed: Sets the number of detections; None if the weights decide.
        turns: Milliseconds per image of each stage, for each turn.
        detections: Number of detections in each image.
        input_shapes: Sizes of the network's inputs.
        metrics: Results of the evaluation.
    """

    name: str
    model: nn.Module
    dataset: BaseDataset
    evaluator: Evaluator
    clock: StageClock
    autocast: torch.autocast
    fixed: FixedDetections | None
    turns: list[dict[str, float]] = field(default_factory=list)
    detections: list[int] = field(default_factory=list)
    input_shapes: set[tuple[int, int]] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)

    def clear(self) -> None:
        """Remove all measurements and collected detections."""
        self.turns.clear()
        self.detections.clear()
        self.input_shapes.clear()
        self.clear_results()

    def clear_results(self) -> None:
        """Remove the detections that the metrics collected."""
        for metric in self.evaluator.metrics:
            metric.results.clear()

    @torch.no_grad()
    def take_turn(self, indices: Sequence[int]) -> None:
        """Process a batch of images from the files to the metrics.

        Args:
            indices: Images of the dataset.

        Raises:
            InputError: If an image has another number of detections than was set.
        """
        clock = self.clock
        clock.take()
        with clock.run_stage('other'):
            with clock.run_stage('loading'):
                batch = pseudo_collate([self.dataset[i] for i in indices])
            with self.autocast:
                samples = self.model.test_step(batch)
            with clock.run_stage('encoding'):
                self.evaluator.process(data_samples=samples, data_batch=batch)
        self.turns.append({stage: ms / len(indices) for stage, ms in clock.take().items()})
        detections = [len(sample.pred_instances) for sample in samples]
        if self.fixed:
            self._check_number(detections)
        self.detections += detections
        self.input_shapes |= {tuple(sample.batch_input_shape) for sample in samples}

    def _check_number(self, detections: list[int]) -> None:
        wrong = [number for number in detections if number != self.fixed.num_detections]
        if wrong:
            raise InputError(
                f'{self.name} has {wrong[0]} detections in an image instead of {self.fixed.num_detections}, so models '
                'would not do the same work. Give another number, or --detections 0 for what the weights detect.'
            )

    @property
    def totals(self) -> list[float]:
        """Milliseconds per image of each turn."""
        return [sum(turn.values()) for turn in self.turns]


def make_rival_config(name: str, ours: Config) -> Config:
    """Give one of MMDetection's models our backbone and number of classes. Its neck, heads and pipeline stay.

    Args:
        name: Key of ``RIVALS``.
        ours: Config of the first model.

    Raises:
        InputError: If the model needs another number of feature levels.
    """
    cfg = load_installed_config(RIVALS[name].config)
    num_levels = len(cfg.model.neck.in_channels)
    if len(ours.model.neck.in_channels) != num_levels:
        raise InputError(f'--against {name} needs a backbone with {num_levels} levels. Name a config instead.')
    num_classes = {part['num_classes'] for part in walk_dicts(ours.model) if 'num_classes' in part}
    for part in walk_dicts(cfg.model):
        if 'num_classes' in part:
            part['num_classes'] = max(num_classes)
    cfg.model.backbone = copy.deepcopy(ours.model.backbone)
    cfg.model.neck.in_channels = ours.model.neck.in_channels
    return cfg


def split_mask_formats(cfg: Config) -> dict[str, Config]:
    """Return configs by titles of columns: one for each mask format that the model can return, and a faster one."""
    name = cfg.model.type
    if 'mask_format' not in (cfg.model.get('test_cfg') or ()):
        return {name: cfg}
    cfgs = {}
    for mask_format, label in MASK_FORMATS.items():
        cfgs[f'{name}, {label}'] = copy.deepcopy(cfg)
        cfgs[f'{name}, {label}'].model.test_cfg.mask_format = mask_format
    return cfgs | {f'{name}, {FAST}': copy.deepcopy(cfgs[f'{name}, {MASK_FORMATS["rle"]}'])}


def build_model(cfg: Config, checkpoint: str | None) -> nn.Module:
    """Build a model with the weights of a checkpoint, or with random weights from a fixed seed."""
    drop_pretrained(cfg)
    set_random_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if checkpoint:
        load_checkpoint(model, checkpoint, map_location='cpu')
    return model


def build_contestant(
    name: str, cfg: Config, checkpoint: str | None, ours: Config, clock: StageClock, options: Options
) -> Contestant:
    """Build a model, with its own test pipeline on the images of the first model.

    Args:
        name: Title of the column.
        cfg: Config of the model; it is changed.
        checkpoint: Its weights; None for random ones.
        ours: Config of the first model, which has the images and the metrics.
        clock: Clock of the stages.
        options: Options of the benchmark.
    """
    if options.detections:
        keep_all_candidates(cfg)
    model = build_model(cfg, checkpoint)
    dataset = copy.deepcopy(ours.test_dataloader.dataset)
    dataset.pipeline = cfg.test_dataloader.dataset.pipeline
    dataset = DATASETS.build(dataset)
    evaluator = Evaluator(copy.deepcopy(ours.test_evaluator))
    evaluator.dataset_meta = dataset.metainfo
    if name.endswith(FAST):
        model = speed_up(model)
    watch_stages(model, clock)
    autocast = torch.autocast(
        torch.device(options.device).type,
        dtype=getattr(torch, options.precision),
        enabled=options.precision != 'float32',
    )
    fixed = FixedDetections(model, clock) if options.detections else None
    return Contestant(name, model.to(options.device).eval(), dataset, evaluator, clock, autocast, fixed)


def warm_up(contestants: list[Contestant], options: Options) -> str:
    """Let each model take a turn, and remove those of MMDetection that fail, as they do without operators of mmcv.

    Args:
        contestants: All models.
        options: Options of the benchmark.

    Returns:
        A sentence about each model that was removed.
    """
    left_out = []
    for contestant in list(contestants):
        if contestant.fixed:
            contestant.fixed.set_number(options.detections[0])
        try:
            contestant.take_turn([0])
        except Exception as error:
            if type(contestant.model) is type(contestants[0].model) or isinstance(error, InputError):
                raise
            left_out.append(explain_failure(contestant.name, error))
            contestants.remove(contestant)
    return ' '.join(left_out)


def build_contestants(options: Options) -> list[Contestant]:
    """Build the first model, once for each mask format that it can return, and the models that it is compared with."""
    ours = Config.fromfile(options.config)
    ours.merge_from_dict(options.cfg_options)
    entries = [(label, cfg, options.checkpoint) for label, cfg in split_mask_formats(copy.deepcopy(ours)).items()]
    for name, checkpoint in options.rivals:
        if name in RIVALS:
            entries.append((RIVALS[name].title, make_rival_config(name, ours), checkpoint))
        else:
            entries.append((Path(name).stem, Config.fromfile(name), checkpoint))
    clock = StageClock(options.device)
    return [build_contestant(*entry, ours, clock, options) for entry in entries]
