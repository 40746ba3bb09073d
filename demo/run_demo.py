"""Train EmbedMask on two thirds of a microscopy image, test it on the rest, and draw the results (`make demo`)."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import mmengine
from mmengine.config import Config
from pycocotools.coco import COCO

from embedmask_mmdet.inference.side_by_side import draw_dataset

ROOT = Path(__file__).resolve().parents[1]
DATA = Path('data/nuclei')
CONFIG = Path('configs/embedmask-plus_r18_nuclei.py')
SCORE_THR = 0.3  # for drawing; metrics count all detections


def run_stage(name: str, script: str, *args: str | Path) -> float:
    """Run a script and show its output; end the demo if the script fails.

    Returns:
        The time that it took in seconds.
    """
    command = [sys.executable, script, *map(str, args)]
    print(f'\n== {name}: python {shlex.join(command[1:])}', flush=True)
    start = time.perf_counter()
    # If other programs use the cores too, threads that wait actively make training many times slower.
    environment = {'OMP_WAIT_POLICY': 'passive', **os.environ}
    if subprocess.run(command, env=environment).returncode:
        sys.exit(f'\nERROR: {name} failed; see above. After you fix it, `make demo` continues with this stage.')
    return time.perf_counter() - start


def find_final_checkpoint(work_dir: Path, config: Path) -> Path:
    """Return the path of the checkpoint that training writes last."""
    max_iters = Config.fromfile(config, import_custom_modules=False).train_cfg.max_iters
    return work_dir / f'iter_{max_iters}.pth'


def is_trained(checkpoint: Path, config: Path) -> bool:
    """Return whether training has finished, with the config as it is now."""
    pointer = checkpoint.with_name('last_checkpoint')
    # Training writes the pointer after the checkpoint, so an incomplete checkpoint has none.
    if not checkpoint.exists() or not pointer.exists() or Path(pointer.read_text()).name != checkpoint.name:
        return False
    return checkpoint.stat().st_mtime > config.stat().st_mtime


def train(work_dir: Path, checkpoint: Path) -> float:
    """Train unless that is done; return the time that it took in seconds."""
    if is_trained(checkpoint, CONFIG):
        print(f'\n== training: already done. To train again, remove {work_dir}', flush=True)
        return 0.0
    return run_stage('training', 'tools/train.py', CONFIG, '--work-dir', work_dir)


def test(work_dir: Path, checkpoint: Path) -> tuple[dict[str, float], list[dict], float]:
    """Test; return the metrics, the predictions, and the time that it took in seconds."""
    dump = work_dir / 'predictions.pkl'
    seconds = run_stage('test', 'tools/test.py', CONFIG, checkpoint, '--work-dir', work_dir, '--out', dump)
    # Each run of tools/test.py writes its metrics to a folder of its own.
    newest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text()), mmengine.load(dump), seconds


def main() -> None:
    """Get the data, train, test, draw, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo', help='folder for all outputs')
    work_dir = parser.parse_args().work_dir.resolve()
    os.chdir(ROOT)
    if work_dir.is_relative_to(ROOT):
        work_dir = work_dir.relative_to(ROOT)

    seconds = dict(data=run_stage('data', 'tools/dataset_converters/nuclei.py', '--out', DATA))
    checkpoint = find_final_checkpoint(work_dir, CONFIG)
    seconds['training'] = train(work_dir, checkpoint)
    metrics, predictions, seconds['test'] = test(work_dir, checkpoint)

    start = time.perf_counter()
    with contextlib.redirect_stdout(None):
        dataset = COCO(DATA / 'annotations/test.json')
    pictures = draw_dataset(dataset, predictions, DATA / 'images', work_dir / 'pictures', SCORE_THR)
    seconds['pictures'] = time.perf_counter() - start

    print(f'\n== results on the right third of the image, with {len(dataset.anns)} nuclei that were not trained on')
    for kind in ('bbox', 'segm'):
        print(f'{kind}  AP {metrics[f"coco/{kind}_mAP"]:.3f}  AP50 {metrics[f"coco/{kind}_mAP_50"]:.3f}')
    print('ground truth beside prediction:', *pictures)
    print(f'checkpoint: {checkpoint} (demo/embedmask.ipynb shows how to use it)')
    print('seconds:', ', '.join(f'{stage} {value:.0f}' for stage, value in seconds.items()))
    print(f'To train on your own data, start with a copy of {CONFIG}.')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
