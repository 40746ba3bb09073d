"""The page about a model: how good it is, what it does wrong, and which labels are probably wrong."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

from mmengine.config import Config

from embedmask_mmdet.analysis.report import evaluation, statistics
from embedmask_mmdet.analysis.report.analysis import Analysis, analyze
from embedmask_mmdet.analysis.report.charts import draw_score_curves
from embedmask_mmdet.analysis.report.data import Labels, read_dataloader, read_detections, read_json
from embedmask_mmdet.analysis.report.data_page import NUM_CROPS, show_unreadable
from embedmask_mmdet.analysis.report.errors import KINDS
from embedmask_mmdet.analysis.report.gallery import Gallery
from embedmask_mmdet.analysis.report.html import (
    Html,
    check_out,
    element,
    facts,
    grid,
    join,
    make_page,
    paragraph,
    section,
    table,
    write_page,
)
from embedmask_mmdet.analysis.threshold_search import run_validation
from embedmask_mmdet.errors import InputError

MAX_CURVES = 12  # classes that get a diagram of their own
MAX_MATRIX = 20  # classes in the confusion matrix; more become a list
MAX_CONFUSIONS = 40
KEY = Html(
    '<p><span class="key truth"></span>ground truth (left) <span class="key found"></span>prediction (right) '
    '<span class="key other"></span>others near it</p>'
)


def format_ap(ap: float | None) -> str:
    """Format AP, which is None without instances."""
    return '-' if ap is None else f'{ap:.3f}'


def show_head(analysis: Analysis, paths: dict[str, str]) -> Html:
    """Show AP and counts, and where everything comes from."""
    labels = analysis.labels
    numbers = {
        'mask AP': format_ap(evaluation.read_ap(analysis.mask)),
        'box AP': format_ap(evaluation.read_ap(analysis.box)),
        'images': f'{len(labels.images):,}',
        'instances': f'{evaluation.count_instances(labels).total():,}',
        'detections kept': f'{len(analysis.shown):,}',
        'of these right': f'{len(analysis.outcome.matches):,}',
    }
    rows = [element('div', f'{name}: {path}') for name, path in paths.items() if path]
    return join([element('div', *rows, class_='paths'), facts(numbers)])


def show_ap(analysis: Analysis) -> Html:
    """Show AP by class and by size."""
    lead = (
        'A perfect model has AP 1: compare classes and sizes to see where this one is weak, but do not trust figures '
        'of few instances.'
    )
    parts = analysis.labels, analysis.mask, analysis.box
    classes = ['class', 'instances', 'box AP', 'mask AP', 'small', 'medium', 'large']
    sizes = ['size', 'instances', 'box AP', 'mask AP']
    return section(
        'AP by class and size',
        lead,
        table(classes, statistics.tabulate_ap(*parts)),
        element('h3', 'By size of the instances'),
        table(sizes, statistics.tabulate_sizes(*parts)),
    )


def draw_curves(analysis: Analysis) -> list[Html]:
    """Draw precision and recall over the score: by class, or of all classes together if there are many."""
    names = analysis.labels.names
    groups = {name: [category_id] for category_id, name in names.items()}
    if len(names) > MAX_CURVES:
        groups = {'all classes': list(names)}
    charts = []
    for name, category_ids in groups.items():
        threshold = analysis.thresholds[category_ids[0]].threshold if len(category_ids) == 1 else None
        charts.append(draw_score_curves(name, *statistics.collect_scores(analysis.single, category_ids), threshold))
    return charts


def show_curves(analysis: Analysis) -> Html:
    """Show precision and recall over the score."""
    lead = (
        'Keep detections from the dashed score on: there, precision (the share of them that is right, at IoU 0.5) and '
        'recall (the share of instances that is found) balance best. A lower score misses less and invents more.'
    )
    key = Html(
        '<p><span class="key" style="color:#1a5fb4"></span>precision '
        '<span class="key" style="color:#e8710a"></span>recall</p>'
    )
    rows = [
        [analysis.labels.names[c], t.threshold, t.precision, t.recall, t.f_measure, t.instances]
        for c, t in analysis.thresholds.items()
    ]
    titles = ['class', 'threshold', 'precision', 'recall', 'F-measure', 'instances']
    return section('Precision and recall', lead, key, grid(draw_curves(analysis), 'charts'), table(titles, rows))


def shade(count: int, total: int, rgb: str) -> Html:
    """Make a cell of the confusion matrix: the larger its share, the darker."""
    opacity = 0.6 * count / total if total else 0
    return element('td', count or '', class_='cell', style=f'background: rgba({rgb}, {opacity:.2f})')


def draw_matrix(labels: Labels, counts: dict) -> Html:
    """Draw the confusion matrix: a row for each true class, a column for each predicted one."""
    keys = [*labels.names, None]
    rows = []
    for truth in keys:
        total = sum(counts[truth, found] for found in keys)
        cells = [shade(counts[truth, f], total, '31, 157, 58' if truth == f else '232, 113, 10') for f in keys]
        rows.append([element('b', labels.names[truth] if truth is not None else 'nothing (invented)'), *cells])
    rows[-1][-1] = element('td', '', class_='cell')
    return table(['label', *labels.names.values(), 'missed'], rows)


def list_confusions(labels: Labels, counts: dict) -> Html:
    """List the most frequent confusions, for data sets whose matrix would be too large."""
    wrong = sorted(((n, t, f) for (t, f), n in counts.items() if t != f), key=lambda row: -row[0])
    rows = [
        [labels.names.get(truth, 'nothing (invented)'), labels.names.get(found, 'missed'), number]
        for number, truth, found in wrong[:MAX_CONFUSIONS]
    ]
    return table(['label', 'predicted as', 'count'], rows)


def show_confusions(analysis: Analysis) -> Html:
    """Show which classes are taken for which."""
    labels, counts = analysis.labels, statistics.count_confusions(analysis.outcome)
    lead = (
        'Read a row: what became of the instances with this label; green is right, orange is wrong. Detections above '
        'the recommended threshold count, and masks fit from IoU 0.5 on. The last row has detections of nothing, and '
        'further ones of what was found already.'
    )
    if len(labels.names) > MAX_MATRIX:
        return section('Confusion matrix', lead, list_confusions(labels, counts))
    return section('Confusion matrix', lead, draw_matrix(labels, counts))


def show_costs(analysis: Analysis) -> Html:
    """Show how much AP each kind of mistake costs."""
    lead = (
        'Work on the longest bar first: it is the mask AP that the model would gain without the mistakes of this kind.'
    )
    ap = evaluation.read_ap(analysis.single) or 0.0
    counts = {kind: sum(mistake.kind == kind for _, mistake in analysis.costs) for kind in KINDS}
    gains = {kind: max(analysis.repaired.get(kind, ap) - ap, 0.0) for kind in KINDS}
    highest = max([*gains.values(), 1e-9])
    rows = []
    for kind in sorted(KINDS, key=lambda kind: -gains[kind]):
        bar = element('div', class_='bar', style=f'width: {100 * gains[kind] / highest:.0f}%')
        bar = element('td', element('div', bar, class_='track'))
        rows.append([kind, counts[kind], gains[kind], bar, KINDS[kind]])
    note = paragraph(
        'Each kind is repaired alone and AP computed again, as TIDE does, so the gains do not add up. Masks and '
        'classes become right, wrong detections go, missed instances do not count. Only detections above the '
        'recommended threshold are looked at.',
        class_='lead',
    )
    titles = ['kind', 'count', 'AP gained', '', 'what it means']
    return section('What costs AP', lead, element('div', table(titles, rows), class_='costs'), note)


def show_mistakes(analysis: Analysis, gallery: Gallery) -> Html:
    """Show the mistakes that cost most."""
    lead = 'The mistakes that cost most AP are first in each kind; ground truth is left, the prediction is right.'
    pictures = gallery.show_mistakes(analysis.costs, sorted(KINDS, key=lambda kind: -analysis.repaired.get(kind, 0)))
    return section('Mistakes', lead, KEY, pictures or paragraph('There are none.'))


def show_suspicions(analysis: Analysis, gallery: Gallery) -> Html:
    """Show labels that are probably wrong."""
    lead = (
        'Here the label is more likely to be wrong than the model. Go through the first rows of each kind, and correct '
        'labels in your labeling tool, by image name and label id.'
    )
    pictures = gallery.show_suspicions(analysis.suspicions)
    unreadable = show_unreadable(analysis.labels)
    return section('Suspicious labels', lead, KEY, pictures or paragraph('There are none.'), unreadable)


def make_model_page(title: str, analysis: Analysis, paths: dict[str, str], num_crops: int = NUM_CROPS) -> str:
    """Make the page.

    Args:
        title: Its title.
        analysis: What it shows.
        paths: Where everything comes from, by name.
        num_crops: Highest number of pictures of a kind.
    """
    gallery = Gallery(analysis.labels, analysis.shown, num_crops)
    sections = {
        'AP by class and size': show_ap(analysis),
        'What costs AP': show_costs(analysis),
        'Suspicious labels': show_suspicions(analysis, gallery),
        'Mistakes': show_mistakes(analysis, gallery),
        'Precision and recall': show_curves(analysis),
        'Confusion matrix': show_confusions(analysis),
    }
    return make_page(title, show_head(analysis, paths), list(sections.values()), list(sections))


def detect(cfg: Config, checkpoint: str, labels: Labels) -> object:
    """Run a model on the images of ``test_dataloader``.

    Returns:
        Masks in COCO's format for results.
    """
    cfg = copy.deepcopy(cfg)
    cfg.val_dataloader = cfg.test_dataloader
    with tempfile.TemporaryDirectory() as folder:
        return read_json(run_validation(cfg, labels.ann_file, checkpoint, folder))


def write_model_page(
    cfg: Config,
    out: str | Path,
    checkpoint: str | None = None,
    results: str | Path | None = None,
    num_crops: int = NUM_CROPS,
) -> None:
    """Write a page about a model on the images of ``test_dataloader``.

    Args:
        cfg: The config.
        out: The HTML file; an older page is replaced, other files are not.
        checkpoint: Weights of the model.
        results: Masks that it detected earlier, in COCO's format for results; None to detect them now.
        num_crops: Highest number of pictures of a kind.

    Raises:
        InputError: If the data or the results cannot be read, or the page cannot be written.
    """
    check_out(out)
    labels, *others = read_dataloader(cfg, 'test_dataloader')
    if others:
        raise InputError('test_dataloader has several data sets. Give a config with one of them.')
    if not labels.names:
        raise InputError(f'{labels.ann_file} has none of the classes of test_dataloader. Correct metainfo.classes.')
    content = read_json(results) if results else detect(cfg, checkpoint, labels)
    analysis = analyze(labels, read_detections(content, labels))
    name = Path(cfg.filename).name if cfg.filename else 'config'
    has_boxes = any('bbox' in result for result in content)
    paths = {
        'model': f'{cfg.model.type}, {cfg.filename or ""}',
        'checkpoint': checkpoint or '',
        'detections': str(results or ''),
        'boxes': '' if has_boxes else 'around the masks, as the detections have none',
        'data': f'{labels.ann_file}, images in {labels.image_folder or "."}',
    }
    write_page(out, make_model_page(f'Report on {name}', analysis, paths, num_crops))
