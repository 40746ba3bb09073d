"""Training that is killed at any moment resumes from the last whole checkpoint."""

import multiprocessing
import os
import random
import time

import pytest
import torch

from embedmask_mmdet.engine.resume import AtomicBackend, is_complete
from embedmask_mmdet.errors import CheckpointError
from tests.tiny import write_tiny_coco
from tests.training.small import Record, largest_difference, small_cfg, train


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return write_tiny_coco(tmp_path_factory.mktemp('tiny'))


def saved(work_dir):
    return sorted(path.name for path in work_dir.glob('*.pth'))


def test_file_is_complete_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'a.pth'
    backend = AtomicBackend()
    backend.put(b'old', path)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', lambda descriptor: 1 / 0)  # stopped before the end
        with pytest.raises(ZeroDivisionError):
            backend.put(b'new', path)
    assert path.read_bytes() == b'old'
    backend.put(b'new', path)
    assert path.read_bytes() == b'new'
    assert [file.name for file in path.parent.iterdir()] == ['a.pth']


def test_outdated_checkpoint_is_removed_after_the_new_one_is_written(tmp_path, data_root, monkeypatch):
    there, put = [], AtomicBackend.put

    def record(self, obj, filepath):
        there.append(saved(tmp_path))
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicBackend, 'put', record)
    train(small_cfg(data_root, tmp_path, epochs=3, max_keep_ckpts=1))
    assert there == [[], ['epoch_1.pth'], ['epoch_2.pth']]
    assert saved(tmp_path) == ['epoch_3.pth']


@pytest.fixture(scope='module')
def two_epochs(tmp_path_factory, data_root):
    work_dir = tmp_path_factory.mktemp('two_epochs')
    train(small_cfg(data_root, work_dir, epochs=2))
    return work_dir


def truncate(path):
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ('damage', 'first_epoch'),
    [
        (lambda work_dir: None, 3),
        (lambda work_dir: truncate(work_dir / 'epoch_2.pth'), 2),
        (lambda work_dir: (work_dir / 'epoch_2.pth').unlink(), 2),
        (lambda work_dir: (work_dir / 'last_checkpoint').write_text(''), 3),
        (lambda work_dir: (work_dir / 'last_checkpoint').unlink(), 3),
    ],
    ids=['none', 'truncated checkpoint', 'no checkpoint', 'empty last_checkpoint', 'no last_checkpoint'],
)
def test_resume_starts_from_the_last_whole_checkpoint(tmp_path, data_root, two_epochs, damage, first_epoch):
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (tmp_path / name).write_bytes((two_epochs / name).read_bytes())
        os.utime(tmp_path / name, (int(name[6]), int(name[6])))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    damage(tmp_path)
    record = Record()
    train(small_cfg(data_root, tmp_path, epochs=3), resume=True, hooks=(record,))
    assert record.epochs[0] == first_epoch
    assert is_complete(tmp_path / 'epoch_3.pth')


def test_checkpoint_that_cannot_be_resumed_is_named(tmp_path, data_root, two_epochs):
    (tmp_path / 'epoch_2.pth').write_bytes((two_epochs / 'epoch_2.pth').read_bytes())
    truncate(tmp_path / 'epoch_2.pth')
    cfg = small_cfg(data_root, tmp_path, epochs=3)
    cfg.load_from = str(tmp_path / 'epoch_2.pth')
    with pytest.raises(CheckpointError, match=r'epoch_2\.pth is truncated'):
        train(cfg, resume=True)
    torch.save({'state_dict': {'backbone.weight': torch.ones(1)}}, tmp_path / 'other.pth')
    cfg.load_from = str(tmp_path / 'other.pth')
    with pytest.raises(Exception, match=r'other\.pth is no checkpoint of this config'):
        train(cfg, resume=True)


def train_until_half_a_checkpoint(cfg, marker, which):
    """Train, and stop in the middle of writing the ``which``-th checkpoint."""
    number = iter(range(1000))
    write = AtomicBackend.put

    def put(self, obj, filepath):
        if next(number) < which:
            return write(self, obj, filepath)
        with open(f'{os.path.dirname(filepath)}/.{os.path.basename(filepath)}.partial', 'wb') as file:
            file.write(obj[: len(obj) // 2])
        marker.touch()
        time.sleep(600)

    AtomicBackend.put = put
    train(cfg, resume=True)


def train_until_started(cfg, marker, _):
    """Train, and tell when the first iteration is about to begin."""

    class Mark(Record):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            marker.touch()

    train(cfg, resume=True, hooks=(Mark(),))


@pytest.mark.slow
def test_killed_ten_times(tmp_path, data_root):
    epochs = 14
    expected = train(small_cfg(data_root, tmp_path / 'whole', epochs, interval=epochs)).model.state_dict()
    work_dir = tmp_path / 'killed'
    cfg = small_cfg(data_root, work_dir, epochs, max_keep_ckpts=1)
    # Its server imports torch once, and its children begin at once.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tests.training.test_resume'])
    rng = random.Random(0)
    for kill in range(10):
        marker = tmp_path / f'marker{kill}'
        target = train_until_half_a_checkpoint if kill % 2 else train_until_started
        process = context.Process(target=target, args=(cfg, marker, rng.randint(0, 1)))
        process.start()
        deadline = time.monotonic() + 120
        while not marker.exists() and process.is_alive():
            assert time.monotonic() < deadline, 'training did not start'
            time.sleep(0.01)
        time.sleep(0 if kill % 2 else rng.uniform(0, 2))
        process.kill()
        process.join()
        assert all(is_complete(path) for path in work_dir.glob('*.pth'))
        assert kill == 0 or len(saved(work_dir)) >= 1 or not (work_dir / 'last_checkpoint').exists()
    record = Record()
    resumed = train(cfg, resume=True, hooks=(record,)).model.state_dict()
    assert record.epochs[0] > 1
    assert saved(work_dir) == [f'epoch_{epochs}.pth']
    assert largest_difference(expected, resumed) < 1e-5
