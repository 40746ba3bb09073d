"""What benchmarks compare computes the same, and what they write stays where it belongs."""

import pytest
import torch
from mmdet.structures.mask import encode_mask_results
from mmengine.registry import init_default_scope

from embedmask_mmdet.analysis.configs import walk_dicts
from embedmask_mmdet.analysis.markdown import write_section
from embedmask_mmdet.analysis.mask_loss import LOSSES, Case, Cost, compute_error_share, draw_batch, format_costs
from embedmask_mmdet.analysis.mask_stage.cases import draw_arguments
from embedmask_mmdet.analysis.mask_stage.methods import make_methods
from embedmask_mmdet.analysis.mask_stage.report import format_costs as format_mask_costs
from embedmask_mmdet.analysis.mask_stage.timing import Cost as MaskCost


@pytest.mark.parametrize('weights', ['fresh', 'trained'])
def test_measured_losses_and_gradients_are_equal(weights):
    case = Case(weights, 2, 3, (64, 96), 'cpu')
    values, gradients = {}, {}
    for name, build in LOSSES.items():
        batch = draw_batch(case)
        loss = build()(batch)
        loss.backward()
        values[name], gradients[name] = loss.item(), [tensor.grad for tensor in batch.leaves()]
    assert values['lean'] == pytest.approx(values['plain'], rel=1e-5)
    for lean, plain in zip(gradients['lean'], gradients['plain'], strict=True):
        torch.testing.assert_close(lean, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def test_trained_embeddings_leave_few_pixels_with_error():
    shares = [compute_error_share(draw_batch(Case(weights, 1, 3, (64, 96), 'cpu'))) for weights in ('fresh', 'trained')]
    assert shares[0] > 0.5 and 0 < shares[1] < 0.3


def test_losses_that_differ_have_no_row():
    case = Case('fresh', 1, 2, (64, 96), 'cpu')
    row = format_costs(case, Cost(0.002, 10, 1.0), Cost(0.01, 30, 1.0))
    assert row.endswith('| 10 ms | 2 ms | 5.0 | 30 MB | 10 MB | 3.0 |')
    assert format_costs(case, Cost(0.002, 10, 1.0), None).endswith('|  | 2 ms |  |  | 10 MB |  |')
    with pytest.raises(RuntimeError, match='the losses differ'):
        format_costs(case, Cost(0.002, 10, 1.0), Cost(0.01, 30, 1.1))


@pytest.fixture(scope='module')
def arguments():
    return draw_arguments(10, (480, 640), 'cpu')


def test_measured_masks_are_equal(arguments):
    init_default_scope('mmdet')
    methods = make_methods(arguments, memory_limit=1e9)
    with torch.no_grad():
        bitmaps = methods['plain, bitmaps']()
        rles = encode_mask_results(bitmaps.numpy())
        assert 0.3 < float(bitmaps.sum() / box_areas(arguments, (480, 640))) < 0.7
        for name in ('kernels', 'at once'):
            different = (methods[f'{name}, bitmaps']() != bitmaps).float().mean()
            assert different < 1e-4, name  # rounding
        assert methods['plain, RLE']() == rles


def box_areas(arguments, ori_shape):
    bboxes = arguments['bboxes']
    scale = ori_shape[0] / arguments['img_shape'][0]
    return float((bboxes[:, 2:] - bboxes[:, :2]).prod(dim=1).sum()) * scale**2


def test_methods_that_need_too_much_memory_are_left_out(arguments):
    init_default_scope('mmdet')
    assert list(make_methods(arguments, memory_limit=1e6)) == ['kernels, RLE']


def test_bitmaps_are_compared_with_bitmaps_and_run_lengths_with_run_lengths():
    costs = {'kernels, RLE': MaskCost(2, 0), 'kernels, bitmaps': MaskCost(4, 2**20), 'at once, bitmaps': MaskCost(6, 0)}
    lines = format_mask_costs(10, (480, 640), {**costs, 'SOLOv2, RLE': MaskCost(6, 0)})
    assert '| kernels, bitmaps | 4.00 | 1.0 | 1.0 |' in lines
    assert '| at once, bitmaps | 6.00 | 1.5 | 0.0 |' in lines and '| SOLOv2, RLE | 6.00 | 3.0 | 0.0 |' in lines


def test_section_is_replaced_and_others_stay(tmp_path):
    path = tmp_path / 'docs' / 'page.md'
    for title, text in (('One', 'first'), ('Two', 'second'), ('One', 'first again')):
        write_section(path, title, text, page_title='Page')
    assert path.read_text() == '# Page\n\n## One\n\nfirst again\n\n## Two\n\nsecond\n'
    write_section(path, 'Two', 'last\n')
    assert path.read_text() == '# Page\n\n## One\n\nfirst again\n\n## Two\n\nlast\n'


def test_dicts_inside_lists_are_found():
    inner = dict(c=1)
    cfg = dict(a=[inner, (dict(d=2),)], b=3)
    assert list(walk_dicts(cfg)) == [cfg, inner, dict(d=2)]
