"""What ``tools/test.py --out`` writes is what the COCO server takes, and it is worth what the tool says."""

import json
import pickle

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.builders import CLASSES, ROOT, build_responsive_detector, draw_shapes, responsive_model_cfg, tiny_cfg
from tests.scripts import run_script

TEST = ROOT / 'tools' / 'test.py'
SIZES = [(97, 130), (128, 96), (64, 200), (150, 60), (97, 128)]
ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def run_test(folder, *arguments, config='tiny.py', options=()):
    options = ['--cfg-options', *options] if options else []
    return run_script(TEST, [config, 'tiny.pth', *arguments, *options], folder)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with a config, a checkpoint, and images of several sizes without annotations."""
    folder = tmp_path_factory.mktemp('results')
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=build_responsive_detector().state_dict(), meta=meta), folder / 'tiny.pth')

    rng = np.random.default_rng(0)
    (folder / 'images').mkdir()
    images = []
    for image_id, size in enumerate(SIZES, start=7):
        cv2.imwrite(str(folder / f'images/{image_id}.png'), draw_shapes(rng, size, 3)[0])
        images.append(dict(id=image_id, file_name=f'{image_id}.png', height=size[0], width=size[1]))
    categories = [dict(id=3, name=CLASSES[0]), dict(id=5, name=CLASSES[1])]
    (folder / 'image_info.json').write_text(json.dumps(dict(images=images, categories=categories)))

    cfg = tiny_cfg(folder, folder / 'work')
    cfg.test_dataloader.dataset.ann_file = 'image_info.json'
    cfg.test_evaluator.ann_file = str(folder / 'image_info.json')
    cfg.model = responsive_model_cfg()
    cfg.dump(folder / 'tiny.py')
    return folder


@pytest.fixture(scope='module')
def blind(folder):
    """Results of the images without annotations, in a folder that was not there."""
    ran = run_test(folder, '--format-only', '--out', 'new/blind.json')
    assert ran.code == 0, ran.stderr
    return {kind: json.loads((folder / f'new/blind.{kind}.json').read_text()) for kind in ('bbox', 'segm')}


@pytest.fixture(scope='module')
def annotated(folder, blind):
    """Declare every third of the detections to be the truth, so that AP is neither 0 nor 1; return the options."""
    content = json.loads((folder / 'image_info.json').read_text())
    content['annotations'] = [
        dict(
            box,
            id=i + 1,
            segmentation=mask['segmentation'],
            area=float(pycocotools.mask.area(mask['segmentation'])),
            iscrowd=0,
        )
        for i, (box, mask) in enumerate(zip(blind['bbox'], blind['segm']))
        if i % 3 == 0
    ]
    (folder / 'truth.json').write_text(json.dumps(content))
    return ['test_dataloader.dataset.ann_file=truth.json', f'test_evaluator.ann_file={folder / "truth.json"}']


@pytest.fixture(scope='module')
def evaluated(folder, annotated):
    """Test with both mask formats, and with a larger batch; return the metrics of each run."""
    metrics = {}
    for name, options in {
        'bitmap': ['model.test_cfg.mask_format=bitmap'],
        'rle': ['model.test_cfg.mask_format=rle'],
        'batch': ['test_dataloader.batch_size=4'],
    }.items():
        out = ('--out', f'{name}.json', '--work-dir', f'work_{name}')
        ran = run_test(folder, *out, options=[*annotated, *options])
        assert ran.code == 0, ran.stderr
        assert f'wrote {name}.bbox.json and {name}.segm.json' in ran.stdout
        (written,) = folder.glob(f'work_{name}/*/*.json')
        content = json.loads(written.read_text())
        metrics[name] = {key: value for key, value in content.items() if key.startswith('coco/')}
    return metrics


def test_entries_are_those_of_the_servers_format(folder, blind):
    assert len(blind['bbox']) == len(blind['segm']) > 50
    for result in blind['bbox']:
        assert result.keys() == {'image_id', 'category_id', 'bbox', 'score'}
        assert len(result['bbox']) == 4
    for result in blind['segm']:
        # With a box, COCO's API would measure that and not the mask.
        assert result.keys() == {'image_id', 'category_id', 'segmentation', 'score'}
        assert isinstance(result['segmentation']['counts'], str)
        assert tuple(result['segmentation']['size']) == SIZES[result['image_id'] - 7]
        assert result['category_id'] in (3, 5)
    assert not list(folder.glob('new/*partial*'))


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_pycocotools_finds_the_ap_that_was_reported(folder, evaluated, kind):
    truth = COCO(folder / 'truth.json')
    evaluation = COCOeval(truth, truth.loadRes(str(folder / f'bitmap.{kind}.json')), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    reported = [evaluated['bitmap'][f'coco/{kind}_{item}'] for item in ITEMS]
    assert [round(value, 3) for value in evaluation.stats[:6]] == reported
    assert 0.1 < reported[0] < 0.9
    assert len(set(reported[3:])) > 1


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_both_mask_formats_write_the_same_file(folder, evaluated, kind):
    assert (folder / f'rle.{kind}.json').read_bytes() == (folder / f'bitmap.{kind}.json').read_bytes()
    assert evaluated['rle'] == evaluated['bitmap']


def test_batch_of_four_writes_the_same_results(folder, evaluated):
    def read(name, kind):
        return json.loads((folder / f'{name}.{kind}.json').read_text())

    assert evaluated['batch'] == evaluated['bitmap']
    for kind in ('bbox', 'segm'):
        singles, batched = read('bitmap', kind), read('batch', kind)
        assert [result['image_id'] for result in singles] == [result['image_id'] for result in batched]
        assert [result['score'] for result in singles] == pytest.approx([r['score'] for r in batched], abs=1e-6)
    assert [r['segmentation'] for r in read('bitmap', 'segm')] == [r['segmentation'] for r in read('batch', 'segm')]
    boxes = [np.array([result['bbox'] for result in read(name, 'bbox')]) for name in ('bitmap', 'batch')]
    np.testing.assert_allclose(*boxes, rtol=0, atol=1e-4)


def test_pickle_is_mmdetections_dump(folder):
    ran = run_test(folder, '--out', 'dump.pkl', options=['test_dataloader.dataset.indices=2'])
    assert ran.code == 0, ran.stderr
    assert len(pickle.loads((folder / 'dump.pkl').read_bytes())) == 2


def test_coco_metric_among_others_is_found(folder, annotated):
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.test_evaluator = [dict(type='DumpResults', out_file_path=str(folder / 'other.pkl')), cfg.test_evaluator]
    cfg.dump(folder / 'several.py')
    options = ['test_dataloader.dataset.indices=2']
    ran = run_test(folder, '--format-only', '--out', 'several.json', config='several.py', options=options)
    assert ran.code == 0, ran.stderr
    assert (folder / 'several.segm.json').is_file()


def test_config_may_ask_for_the_files_itself(folder):
    options = ['test_evaluator.format_only=True', 'test_evaluator.outfile_prefix=asked/for']
    ran = run_test(folder, options=[*options, 'test_dataloader.dataset.indices=1'])
    assert ran.code == 0, ran.stderr
    assert all('bbox' not in result for result in json.loads((folder / 'asked/for.segm.json').read_text()))


def test_no_coco_metric_is_said_at_once(folder):
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.test_evaluator = dict(type='VOCMetric')
    cfg.dump(folder / 'voc.py')
    ran = run_test(folder, '--out', 'voc.json', config='voc.py')
    assert ran.code == 1
    assert '--out voc.json needs a CocoMetric in test_evaluator of voc.py, which has none' in ran.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--out', 'results.txt'], '--out results.txt must end in .json for COCO result files, or in .pkl'),
        (['--out', 'tiny.py/results.json'], '--out tiny.py/results.json cannot be written to tiny.py'),
        (['--format-only'], 'say where with --out NAME.json'),
        (['--format-only', '--out', 'a.pkl'], 'say where with --out NAME.json'),
    ],
)
def test_what_cannot_be_written_is_said_at_once(folder, arguments, message):
    ran = run_test(folder, *arguments)
    assert ran.code == 1
    assert message in ran.stderr
    assert 'Traceback' not in ran.stderr
    assert 'Loads checkpoint' not in ran.stdout
