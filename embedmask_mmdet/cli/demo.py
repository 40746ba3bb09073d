"""Show a model on a web page: drop an image on it, see masks, move thresholds, click an instance, download results.

    python tools/misc/demo.py CONFIG CHECKPOINT --examples data/nuclei/images
    python tools/misc/demo.py model.onnx

The page can only be reached from this machine, unless `--host` says otherwise. With a checkpoint, it explains the
instance that is clicked. An ONNX file needs neither PyTorch nor MMDetection. The page is made with Gradio:
`pip install 'gradio>=6'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedmask_mmdet.demo_page.server import LOCAL_HOST, is_local, private_folder, start
from embedmask_mmdet.errors import CheckpointError, InputError, fail

INSTALL = "Gradio makes the page, and is not installed. Install it with `pip install 'gradio>=6'`."


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'model', nargs='+', type=Path, metavar='MODEL', help='a config and a checkpoint, or one ONNX file'
    )
    parser.add_argument('--examples', type=Path, metavar='FOLDER', help='images to choose from')
    parser.add_argument('--device', help='of the checkpoint (default: cuda:0 if there is one, otherwise cpu)')
    parser.add_argument('--host', default=LOCAL_HOST, help='address to listen on (default: %(default)s)')
    parser.add_argument('--port', type=int, help='(default: the first free one from 7860 on)')
    parser.add_argument('--max-mb', type=float, default=20, help='largest file, in megabytes (default: %(default)s)')
    parser.add_argument(
        '--max-megapixels', type=float, default=25, help='largest image, in million pixels (default: %(default)s)'
    )
    return parser


def load_model(paths: Sequence[Path], device: str | None) -> Any:
    """Load an ONNX file, or a config and a checkpoint.

    Raises:
        CheckpointError: If the checkpoint cannot be loaded.
        InputError: If the files cannot be used.
    """
    if len(paths) == 1:
        from embedmask_mmdet.demo_page.onnx_model import OnnxModel

        return OnnxModel(paths[0])
    from embedmask_mmdet.cli.launch import find_checkpoint, find_config
    from embedmask_mmdet.demo_page.torch_model import TorchModel

    config, checkpoint = find_config(str(paths[0])), find_checkpoint(str(paths[1]))
    return TorchModel(Path(config), Path(checkpoint).expanduser(), device)


def check_model(parser: argparse.ArgumentParser, paths: Sequence[Path]) -> None:
    """End the program if the files are neither an ONNX file nor a config and a checkpoint."""
    suffixes = [path.suffix.lower() for path in paths]
    if suffixes == ['.onnx'] or (len(paths) == 2 and '.onnx' not in suffixes):
        return
    parser.error('MODEL is either a config and a checkpoint (CONFIG CHECKPOINT), or one file that ends in .onnx')


def serve(args: argparse.Namespace) -> None:
    """Load the model, and serve its page until the program is interrupted.

    Raises:
        CheckpointError: If the checkpoint cannot be loaded.
        InputError: If the model, the examples or the address cannot be used.
    """
    from embedmask_mmdet.demo_page.page import Page
    from embedmask_mmdet.demo_page.uploads import UploadLimits, list_examples

    limits = UploadLimits(args.max_mb, args.max_megapixels)
    examples = list_examples(args.examples.expanduser()) if args.examples else []
    model = load_model(args.model, args.device)
    blocks = Page(model, len(args.model) == 2, limits, examples).build()
    url = start(blocks, args.host, args.port, args.max_mb)
    print(f'Open {url} in a browser. Press Ctrl+C to end.', flush=True)
    if not is_local(args.host):
        print(f'Everybody who can reach {args.host} can use the page: there is no password.', flush=True)
    try:
        blocks.block_thread()
    finally:
        blocks.close(verbose=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Show a model.

    Args:
        argv: Arguments; None for those of the command line.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    check_model(parser, args.model)
    if min(args.max_mb, args.max_megapixels) <= 0:
        parser.error('--max-mb and --max-megapixels must be above 0')
    if importlib.util.find_spec('gradio') is None:
        fail(INSTALL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are removed
    try:
        with private_folder():
            serve(args)
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except KeyboardInterrupt:  # while the model is loaded, or twice
        sys.exit(130)
