"""Pictures of detections under names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.runner import Runner
from torch.utils.data import Dataset

from embedmask_mmdet.media import name_outputs


def name_pictures(dataset: Dataset, out_dir: Path) -> dict[str, Path]:
    """Choose a different file for the picture of each image of a dataset.

    Pictures are named like the images. If two images have the same name, all pictures also get the images' folders.
    """
    images = list(dict.fromkeys(dataset.get_data_info(i)['img_path'] for i in range(len(dataset))))
    return dict(zip(images, name_outputs([Path(image) for image in images], out_dir)))


@HOOKS.register_module()
class EmbedMaskVisualizationHook(DetVisualizationHook):
    """MMDetection's ``DetVisualizationHook`` that draws images of the same name in two folders into two pictures."""

    def before_test(self, runner: Runner) -> None:
        """Choose the names of pictures."""
        if self.draw and self.test_out_dir is not None:
            # MMDetection joins this with the folder of the run again for each batch.
            self.test_out_dir = str(Path(runner.work_dir, runner.timestamp, self.test_out_dir).absolute())
            self._pictures = name_pictures(runner.test_dataloader.dataset, Path(self.test_out_dir))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw a batch."""
        out_dir = self.test_out_dir
        for sample in outputs:
            if self.draw and out_dir is not None:
                self.test_out_dir = str(self._pictures[sample.img_path].parent)
            super().after_test_iter(runner, batch_idx, data_batch, [sample])
        self.test_out_dir = out_dir
