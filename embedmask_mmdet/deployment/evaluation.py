"""The metrics of an ONNX file, by MMDetection's dataset and evaluator."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.errors import InputError, name_some

OUTPUTS = ('bboxes', 'scores', 'labels', 'masks')


class OnnxDetector:
    """Detect with an ONNX file that takes images and gives detections.

    Args:
        path: The file.

    Raises:
        InputError: If it cannot be read or is of another kind, or onnxruntime is missing.
    """

    def __init__(self, path: str | Path) -> None:
        onnxruntime = import_optional('onnxruntime')
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        # Errors of onnxruntime have no class in common but this.
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(f'{path} is not a complete ONNX file ({reason}). Export it again.') from error
        inputs, outputs = (
            [value.name for value in values()] for values in (self.session.get_inputs, self.session.get_outputs)
        )
        if inputs != ['image'] or tuple(outputs) != OUTPUTS:
            raise InputError(
                f'{path} takes {name_some(inputs)} and gives {name_some(outputs)}, not detections in an image. Export '
                'it without --input, --raw and --masks.'
            )
        self.metadata = self.session.get_modelmeta().custom_metadata_map

    def __call__(self, image: np.ndarray) -> InstanceData:
        """Detect in an image ``(H, W, 3)``, uint8 BGR."""
        outputs = self.session.run(None, {'image': image})
        return InstanceData(**{name: torch.from_numpy(output) for name, output in zip(OUTPUTS, outputs)})


def keep_size(cfg: Config) -> dict:
    """Return the config of the test dataloader without the resizing of images, which is in the ONNX file."""
    dataloader = copy.deepcopy(cfg.test_dataloader)
    dataset = dataloader.dataset
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = [step for step in get_test_pipeline_cfg(cfg) if step['type'] != 'Resize']
    return dataloader


def check_classes(detector: OnnxDetector, classes: tuple[str, ...], path: str | Path) -> None:
    """Compare the classes of a file and of a dataset.

    Raises:
        InputError: If they differ.
    """
    known = json.loads(detector.metadata.get('classes', 'null'))
    if known is not None and tuple(known) != tuple(classes):
        raise InputError(
            f'{path} has the classes {name_some(known)}, but the test set has {name_some(list(classes))}. Use the '
            'config that the file was exported with.'
        )


def evaluate(cfg: Config, path: str | Path) -> dict[str, float]:
    """Compute the metrics of a config's ``test_evaluator`` for an ONNX file.

    Args:
        cfg: With ``test_dataloader`` and ``test_evaluator``.
        path: The file, with images as input and bitmaps as output.

    Returns:
        The metrics by name.

    Raises:
        InputError: If the file cannot be used with this config.
    """
    detector = OnnxDetector(path)
    dataloader = Runner.build_dataloader(keep_size(cfg), seed=0)
    check_classes(detector, dataloader.dataset.metainfo['classes'], path)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = dataloader.dataset.metainfo
    for batch in dataloader:
        for image, sample in zip(batch['inputs'], batch['data_samples']):
            detections = detector(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
            evaluator.process([DetDataSample(pred_instances=detections, metainfo=sample.metainfo)], batch)
    return evaluator.evaluate(len(dataloader.dataset))
