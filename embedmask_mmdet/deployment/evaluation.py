"""The metrics of an ONNX file, by MMDetection's dataset and evaluator."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from embedmask_mmdet.deployment.verify import COMPARED
from embedmask_mmdet.errors import InputError, name_some
from embedmask_mmdet.runtime import Segmenter


def keep_size(cfg: Config) -> dict:
    """Return the config of the test dataloader without the resizing of images, which is in the ONNX file."""
    dataloader = copy.deepcopy(cfg.test_dataloader)
    dataset = dataloader.dataset
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = [step for step in get_test_pipeline_cfg(cfg) if step['type'] != 'Resize']
    return dataloader


def check_classes(known: tuple[str, ...], classes: tuple[str, ...], path: str | Path) -> None:
    """Compare the classes of a file, which may have no names, with those of a dataset.

    Raises:
        InputError: If they differ.
    """
    if known and known != tuple(classes):
        raise InputError(
            f'{path} has the classes {name_some(known)}, but the test set has {name_some(list(classes))}. Use the '
            'config that the file was exported with.'
        )


def evaluate(cfg: Config, path: str | Path) -> dict[str, float]:
    """Compute the metrics of a config's ``test_evaluator`` for an ONNX file.

    Args:
        cfg: With ``test_dataloader`` and ``test_evaluator``.
        path: The file, with images as input and masks as output.

    Returns:
        The metrics by name.

    Raises:
        InputError: If the file cannot be used with this config.
    """
    segmenter = Segmenter(path)
    dataloader = Runner.build_dataloader(keep_size(cfg), seed=0)
    check_classes(segmenter.class_names, dataloader.dataset.metainfo['classes'], path)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = dataloader.dataset.metainfo
    for batch in dataloader:
        for image, sample in zip(batch['inputs'], batch['data_samples']):
            detections = segmenter(image.permute(1, 2, 0).numpy())
            results = InstanceData(**{name: torch.from_numpy(getattr(detections, name)) for name in COMPARED})
            evaluator.process([DetDataSample(pred_instances=results, metainfo=sample.metainfo)], batch)
    return evaluator.evaluate(len(dataloader.dataset))
