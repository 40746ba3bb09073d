"""MMDetection's API of an annotation file that checks what it reads, and repairs what has only one meaning."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import coco_metric
from mmengine.logging import print_log

from embedmask_mmdet.engine.data_checks.boxes import find_box_problems, list_image_sizes
from embedmask_mmdet.engine.data_checks.findings import ERROR, Finding, error, report, warning
from embedmask_mmdet.engine.data_checks.masks import find_mask_problems, is_usable
from embedmask_mmdet.engine.data_checks.reading import read_annotation_file
from embedmask_mmdet.engine.data_checks.structure import find_file_name_problems, find_structure_problems
from embedmask_mmdet.errors import name_some


def find_file_problems(content: dict) -> list[Finding]:
    """Check the content of an annotation file, as :func:`read_annotation_file` returns it."""
    found = find_structure_problems(content)
    if not content.get('annotations') or any(finding.severity == ERROR for finding in found):
        return found
    image_sizes = list_image_sizes(content)
    return [*found, *find_box_problems(content, image_sizes), *find_mask_problems(content, image_sizes)]


def repair(content: dict) -> None:
    """Change, in place, what MMDetection would take in a wrong way, or in two ways in training and in evaluation.

    A missing or empty "iscrowd" becomes 0. Polygons without three points are left out. An annotation with id 0, which
    pycocotools never counts as found, gets the next free id.

    Args:
        content: An annotation file without errors.
    """
    annotations = content.get('annotations', [])
    for annotation in annotations:
        annotation['iscrowd'] = int(annotation.get('iscrowd') or 0)
        mask = annotation.get('segmentation')
        if isinstance(mask, list) and not all(map(is_usable, mask)):
            annotation['segmentation'] = list(filter(is_usable, mask))
        if annotation['id'] == 0:
            annotation['id'] = 1 + max(other['id'] for other in annotations)


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause garbage collection, which would look at millions of new objects again and again and find nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class CheckedCOCO(COCO):
    """An annotation file in COCO's format that was checked and repaired.

    Args:
        annotation_file: A local file; None for an empty one.

    Raises:
        InputError: If the file would make training or evaluation fail or learn nothing right.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        self.path = str(annotation_file)
        if annotation_file is None:
            return
        with garbage_collection_paused():
            self.dataset = read_annotation_file(annotation_file)
            self._check()
            repair(self.dataset)
            with contextlib.redirect_stdout(None):
                self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def _find_problems(self) -> list[Finding]:
        return find_file_problems(self.dataset)

    def _check(self) -> None:
        start = time.perf_counter()
        found = self._find_problems()
        seconds = time.perf_counter() - start
        report(replace(finding, message=f'{self.path}: {finding.message}', ann_file=self.path) for finding in found)
        print_log(
            f'Checked {len(self.dataset["images"])} images and {len(self.dataset.get("annotations", []))} annotations '
            f'of {self.path} in {seconds:.1f} s',
            'current',
        )

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        """Return ids of categories in the order of their names, so that class i is the i-th name.

        pycocotools returns them in the order of the file.

        Raises:
            InputError: If several categories have one of the names.
        """
        found = super().get_cat_ids(cat_names, sup_names, cat_ids)
        if isinstance(cat_names, str):
            return found
        names = [self.cats[cat_id]['name'] for cat_id in found]
        unknown = [name for name in cat_names if name not in names]
        if unknown:
            report([self._describe_unknown(unknown)])
        repeated = [name for name, count in Counter(names).items() if count > 1 and name in cat_names]
        if repeated:
            report([self._describe_repeated(cat_names, repeated, found)])
        order = {name: position for position, name in enumerate(cat_names)}
        return sorted(found, key=lambda cat_id: order.get(self.cats[cat_id]['name'], -1))

    def _describe_unknown(self, unknown: list[str]) -> Finding:
        known = name_some([category['name'] for category in self.cats.values()])
        return warning(
            f'{self.path} has no category {name_some(unknown)}, as metainfo.classes says. Its categories are {known}.',
            ann_file=self.path,
        )

    def _describe_repeated(self, classes: Sequence[str], repeated: list[str], found: list[int]) -> Finding:
        ids = [cat_id for cat_id in found if self.cats[cat_id]['name'] == repeated[0]]
        return error(
            f'{self.path} has {len(found)} categories for the {len(classes)} classes of metainfo.classes '
            f'({name_some(list(classes))}): "{repeated[0]}" is the name of ids {name_some(ids)}. Rename or remove one '
            'entry of "categories".',
            ann_file=self.path,
        )


class CheckedDatasetCOCO(CheckedCOCO):
    """The same for a dataset, which also needs the names of image files."""

    def _find_problems(self) -> list[Finding]:
        found = super()._find_problems()
        broken = any(finding.severity == ERROR for finding in found)
        return found if broken else [*find_file_name_problems(self.dataset), *found]


def check_what_mmdet_reads() -> None:
    """Make ``CocoDataset`` and ``CocoMetric`` read annotation files with the classes above from now on.

    The metric has no setting for it, and datasets of users' configs are of MMDetection's types.
    """
    CocoDataset.COCOAPI = CheckedDatasetCOCO
    coco_metric.COCO = CheckedCOCO
