"""Count the weights and multiply-adds of models, as a table: ours by their files, MMDetection's as ``mmdet::...``.

MMDetection's installed tool of this name needs the dataset, averages over its images' sizes, and leaves deformable
convolutions out without a word. This one takes an input size, and says what it has not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from functools import lru_cache, partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from run_installed import check_config, fail, require_mmdet  # noqa: E402

require_mmdet()

import torch  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.testing import demo_mm_inputs  # noqa: E402
from mmengine.analysis import FlopAnalyzer, parameter_count  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hub import get_config  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from torch import nn  # noqa: E402

PYTHON_OP = 'prim::PythonOp.'


def count_deform_conv(inputs: list, outputs: list) -> Counter:
    """Count a deformable convolution as an ordinary one; MMEngine calls this with the values of the traced graph."""
    # The weight follows the image, the offsets and, in the modulated one, the mask: all with four dimensions.
    shapes = [torch.Size(value.type().sizes()) for value in inputs if value.isCompleteTensor()]
    weight = [shape for shape in shapes if len(shape) == 4][-1]
    output = torch.Size(outputs[0].type().sizes())
    return Counter(deform_conv=output.numel() * weight[1:].numel())


def count(model: nn.Module, shape: tuple[int, int]) -> tuple[int, Counter, set[str]]:
    """Count what the network computes for one image, without post-processing.

    Args:
        model: Any detector of MMDetection; two-stage ones get 1000 proposals, the first 100 of them masks.
        shape: Height and width of the image in pixels; it is padded as the model's config says.

    Returns:
        The number of weights; multiply-adds by kind of operation; names of Python operators that were not counted.
    """
    init_default_scope('mmdet')
    packed = demo_mm_inputs(1, [(3, *shape)], num_items=[10], num_classes=2, with_mask=True)
    data = model.eval().data_preprocessor(packed)
    model.forward = partial(model.forward, data_samples=data['data_samples'])
    if getattr(model, 'bbox_head', None) is not None:
        # In this mode CondInst runs its box head a second time, for a loss.
        model.bbox_head.forward = lru_cache(maxsize=1)(model.bbox_head.forward)
    analyzer = FlopAnalyzer(model, (data['inputs'],))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
    for name in ('DeformConv2dFunction', 'ModulatedDeformConv2dFunction'):
        analyzer.set_op_handle(PYTHON_OP + name, count_deform_conv)
    with torch.no_grad():
        operations = analyzer.by_operator()
    skipped = {name.removeprefix(PYTHON_OP) for name in analyzer.unsupported_ops() if name.startswith(PYTHON_OP)}
    return parameter_count(model)[''], operations, skipped


def load_config(config: str) -> Config:
    """Read a config file, or one that MMDetection has installed."""
    if not config.startswith('mmdet::'):
        check_config(config)
        return Config.fromfile(config)
    try:
        return get_config(config)
    except FileNotFoundError:
        fail(f'the installed mmdet has no config {config.removeprefix("mmdet::")}')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='a file, or mmdet::folder/name.py')
    parser.add_argument('--shape', nargs=2, type=int, default=[800, 1280], metavar=('HEIGHT', 'WIDTH'))
    return parser.parse_args()


def main() -> None:
    """Print a row for each config."""
    args = parse_args()
    if min(args.shape) < 1:
        fail(f'--shape takes a height and a width in pixels, got {args.shape}')
    configs = {Path(config).name: load_config(config) for config in args.configs}
    height, width = args.shape
    print(f'| config | parameters (M) | GFLOPs at {height} x {width} |\n| --- | --- | --- |')
    skipped_ops: set[str] = set()
    for name, cfg in configs.items():
        parameters, operations, skipped = count(MODELS.build(cfg.model), (height, width))
        print(f'| {name} | {parameters / 1e6:.1f} | {sum(operations.values()) / 1e9:.1f} |', flush=True)
        skipped_ops |= skipped
    uncounted = ', '.join(['post-processing', 'elementwise operations', *sorted(skipped_ops)])
    print(f'One multiply-add counts once. Not counted: {uncounted}.')


if __name__ == '__main__':
    main()
