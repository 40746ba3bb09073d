"""Captioned pictures of mistakes and of suspicious labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from embedmask_mmdet.analysis.report import crops, suspicions
from embedmask_mmdet.analysis.report.data import Detection, Instance, Labels, group_by_image
from embedmask_mmdet.analysis.report.errors import KINDS, Mistake
from embedmask_mmdet.analysis.report.html import Html, element, figure, grid, join, paragraph
from embedmask_mmdet.analysis.report.suspicions import Suspicion, count_kinds

MAX_LABEL_IDS = 4
LINE_BREAK = Html('<br>')


class Gallery:
    """Draws instances of one data set.

    Args:
        labels: Its annotations.
        shown: Detections that are drawn around others.
        num_crops: Highest number of pictures of a kind.
    """

    def __init__(self, labels: Labels, shown: Sequence[Detection] = (), num_crops: int = 24) -> None:
        self.labels = labels
        self.num_crops = num_crops
        self.truth = labels.by_image()
        self.found = group_by_image(shown)

    def find_path(self, image_id: int) -> str:
        """Return the path of an image."""
        return str(Path(self.labels.image_folder, self.labels.image_name(image_id)))

    def name_classes(self, items: Iterable[Instance | Detection]) -> str:
        """Return the names of the classes of instances or detections, each once."""
        return ', '.join(dict.fromkeys(self.labels.names[item.category_id] for item in items))

    def describe_place(self, image_id: int, instances: Sequence[Instance]) -> list[str]:
        """Return the name of the image and the ids of labels."""
        ids = [str(instance.label_id) for instance in instances]
        more = ' ...' if len(ids) > MAX_LABEL_IDS else ''
        name = 'label' if len(ids) == 1 else 'labels'
        return [self.labels.image_name(image_id), *([f'{name} {", ".join(ids[:MAX_LABEL_IDS])}{more}'] if ids else [])]

    def describe_classes(self, instances: Sequence[Instance], detections: Sequence[Detection]) -> str:
        """Return the class of the label, and that of the detection if it is another one."""
        truth, found = self.name_classes(instances), self.name_classes(detections)
        return f'{truth}, predicted as {found}' if truth and found and truth != found else truth or found

    def draw(self, image_id: int, instances: Sequence[Instance], detections: Sequence[Detection]) -> str:
        """Draw labels beside detections."""
        around = self.truth.get(image_id, []), self.found.get(image_id, [])
        return crops.draw_comparison(self.find_path(image_id), instances, detections, *around)

    def show_mistake(self, cost: float, mistake: Mistake) -> Html:
        """Show a mistake with what it costs."""
        values = [f'score {mistake.score:.2f}'] if mistake.detections else []
        values += [f'IoU {mistake.iou:.2f}', f'costs {cost:.4f} AP']
        return figure(
            self.draw(mistake.image_id, mistake.instances, mistake.detections),
            element('b', self.describe_classes(mistake.instances, mistake.detections)),
            ' · ' + ' · '.join(values),
            LINE_BREAK,
            ' · '.join(self.describe_place(mistake.image_id, mistake.instances)),
            alt=mistake.kind,
        )

    def draw_suspicion(self, suspicion: Suspicion) -> str:
        """Draw labels beside what disagrees with them: detections, or the bare image."""
        path = self.find_path(suspicion.image_id)
        if suspicion.kind in suspicions.MODEL_KINDS:
            return self.draw(suspicion.image_id, suspicion.instances, suspicion.detections)
        if not suspicion.instances:
            return crops.draw_thumbnail(path)
        bboxes = [i.bbox for i in suspicion.instances] if suspicion.kind in suspicions.BOX_KINDS else []
        return crops.draw_labels(path, suspicion.instances, self.truth.get(suspicion.image_id, []), bboxes)

    def show_suspicion(self, suspicion: Suspicion) -> Html:
        """Show a suspicious label."""
        parts = [self.describe_classes(suspicion.instances, suspicion.detections), suspicion.note]
        return figure(
            self.draw_suspicion(suspicion),
            element('b', ' · '.join(filter(None, parts))),
            LINE_BREAK,
            ' · '.join(self.describe_place(suspicion.image_id, suspicion.instances)),
            alt=suspicion.kind,
        )

    def head(self, kind: str, rule: str, number: int) -> Html:
        """Make the title of a kind."""
        limit = f', the first {self.num_crops} of them' if number > self.num_crops else ''
        return join([element('h3', f'{kind.capitalize()} ({number:,}{limit})'), paragraph(rule, class_='lead')])

    def show_mistakes(self, costs: Sequence[tuple[float, Mistake]], kinds: Iterable[str]) -> Html:
        """Show mistakes by kind, in the order in which they are given."""
        parts = []
        for kind in kinds:
            own = [pair for pair in costs if pair[1].kind == kind]
            if own:
                parts.append(self.head(kind, KINDS[kind], len(own)))
                parts.append(grid([self.show_mistake(*pair) for pair in own[: self.num_crops]]))
        return join(parts)

    def show_suspicions(self, found: Sequence[Suspicion]) -> Html:
        """Show suspicious labels by kind, those that a model finds first."""
        counts, parts = count_kinds(found), []
        for kind, rule in {**suspicions.MODEL_KINDS, **suspicions.KINDS}.items():
            if counts[kind]:
                own = [suspicion for suspicion in found if suspicion.kind == kind]
                parts.append(self.head(kind, rule, counts[kind]))
                parts.append(grid([self.show_suspicion(suspicion) for suspicion in own[: self.num_crops]]))
        return join(parts)
