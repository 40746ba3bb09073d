"""Training that is killed at any moment resumes from the newest complete checkpoint."""

import multiprocessing
import os
import random
import time
from unittest import mock

import pytest
import torch
from mmengine.fileio import BaseStorageBackend, FileClient, register_backend

from embedmask_mmdet.engine.resume import AtomicBackend, EmbedMaskCheckpointHook, is_complete
from embedmask_mmdet.errors import CheckpointError
from tests.training.runs import Record, largest_difference, short_run_cfg, train


def saved(work_dir):
    return sorted(path.name for path in work_dir.glob('*.pth'))


def test_file_is_complete_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'folder' / 'a.pth'
    backend = AtomicBackend()
    backend.put(b'old', path)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', lambda descriptor: 1 / 0)  # interrupted while writing
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
    train(short_run_cfg(data_root, tmp_path, epochs=3, max_keep_ckpts=1))
    assert there == [[], ['epoch_1.pth'], ['epoch_2.pth']]
    assert saved(tmp_path) == ['epoch_3.pth']


def test_outdated_checkpoints_are_removed_after_an_interruption(tmp_path, data_root, monkeypatch):
    cfg = short_run_cfg(data_root, tmp_path, epochs=3, max_keep_ckpts=1)
    with monkeypatch.context() as patch:
        patch.setattr(EmbedMaskCheckpointHook, '_remove', lambda self, step: 1 / 0)  # interrupted before removing
        with pytest.raises(ZeroDivisionError):
            train(cfg)
    assert saved(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    train(cfg, resume=True)
    assert saved(tmp_path) == ['epoch_3.pth']


def test_two_checkpoints_are_kept_even_if_one_is_deleted(tmp_path, data_root):
    class Delete(Record):
        def before_train_epoch(self, runner):
            if runner.epoch == 2:
                (tmp_path / 'epoch_1.pth').unlink()

    train(short_run_cfg(data_root, tmp_path, epochs=4, max_keep_ckpts=2), hooks=(Delete(),))
    assert saved(tmp_path) == ['epoch_3.pth', 'epoch_4.pth']


class DictBackend(BaseStorageBackend):
    """Remote storage that is a dict."""

    files: dict[str, bytes] = {}

    def get(self, filepath):
        return self.files[filepath]

    def get_text(self, filepath):
        return self.files[filepath].decode()

    def put(self, obj, filepath):
        self.files[filepath] = obj

    def join_path(self, *parts):
        return '/'.join(parts)

    def isfile(self, filepath):
        return filepath in self.files

    def remove(self, filepath):
        del self.files[filepath]


def test_checkpoints_in_remote_storage(tmp_path, data_root, monkeypatch):
    monkeypatch.setattr(DictBackend, 'files', {})
    register_backend('dict', DictBackend, prefixes='dict', force=True)
    FileClient.register_backend('dict', DictBackend, prefixes='dict', force=True)
    cfg = short_run_cfg(data_root, tmp_path / 'work', epochs=2, max_keep_ckpts=1, out_dir='dict://bucket')
    train(cfg)
    assert list(DictBackend.files) == ['dict://bucket/work/epoch_2.pth']
    # A local checkpoint does not replace the remote one that MMEngine resumes from.
    (tmp_path / 'work/epoch_1.pth').write_bytes(DictBackend.files['dict://bucket/work/epoch_2.pth'])
    with pytest.raises(FileNotFoundError, match='bucket/work/epoch_2'):
        train(short_run_cfg(data_root, tmp_path / 'work', epochs=2), resume=True)


def test_storage_that_the_user_chose_is_kept(tmp_path, data_root, monkeypatch):
    monkeypatch.setattr(AtomicBackend, 'put', mock.Mock(side_effect=AssertionError))
    train(short_run_cfg(data_root, tmp_path, backend_args=dict(backend='local')))
    assert saved(tmp_path) == ['epoch_1.pth']


@pytest.fixture(scope='module')
def two_epochs(tmp_path_factory, data_root):
    work_dir = tmp_path_factory.mktemp('two_epochs')
    train(short_run_cfg(data_root, work_dir, epochs=2))
    return work_dir


@pytest.fixture
def work_dir(tmp_path, two_epochs):
    """A folder as training for two epochs leaves it, with the first checkpoint older than the second."""
    folder = tmp_path / 'work'
    folder.mkdir()
    for epoch in (1, 2):
        path = folder / f'epoch_{epoch}.pth'
        path.write_bytes((two_epochs / path.name).read_bytes())
        os.utime(path, (epoch, epoch))
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    return folder


@pytest.mark.skipif(not hasattr(torch.serialization, 'clear_safe_globals'), reason='torch before 2.4 has no such list')
def test_checkpoints_need_no_class_but_torchs_own(two_epochs):
    # Programs that do not import this package allow no other class.
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        checkpoint = torch.load(two_epochs / 'epoch_2.pth', weights_only=True)
    finally:
        torch.serialization.add_safe_globals(allowed)
    assert {'state_dict', 'meta', 'message_hub', 'optimizer'} <= set(checkpoint)


def test_resumed_training_goes_on_with_the_logged_values(data_root, work_dir, two_epochs):
    runner = train(short_run_cfg(data_root, work_dir, epochs=3), resume=True)
    history, counts = runner.message_hub.get_scalar('train/loss').data
    assert len(history) == len(counts) == runner.iter
    before = torch.load(two_epochs / 'epoch_2.pth', weights_only=True)['message_hub']['log_scalars']['train/loss']
    assert history[: len(before['log_history'])].tolist() == before['log_history'].tolist()
    assert isinstance(runner.message_hub.get_info('eta'), float)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-500])


def read_log(work_dir):
    return ''.join(path.read_text() for path in work_dir.glob('*/*.log'))


def record_epochs(cfg, resume=True):
    record = Record()
    train(cfg, resume=resume, hooks=(record,))
    return record.epochs


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
def test_resume_starts_from_the_newest_complete_checkpoint(data_root, work_dir, damage, first_epoch):
    damage(work_dir)
    assert record_epochs(short_run_cfg(data_root, work_dir, epochs=3))[0] == first_epoch
    assert is_complete(work_dir / 'epoch_3.pth')


def test_resume_ignores_other_files(data_root, work_dir):
    first, last = work_dir / 'epoch_1.pth', work_dir / 'epoch_2.pth'
    truncate(last)
    for name in ('best_coco_segm_mAP_epoch_2.pth', 'epoch_2.pth.copy', 'epoch_last.pth', 'epoch_3_pth'):
        (work_dir / name).write_bytes(first.read_bytes())
    (work_dir / 'epoch_9.pth').mkdir()
    assert record_epochs(short_run_cfg(data_root, work_dir, epochs=2)) == [2]
    message = f'names {last}, which is not a complete checkpoint. Training resumes from {first}'
    assert message in read_log(work_dir)


def test_resume_looks_in_the_folder_of_the_checkpoints(tmp_path, data_root, work_dir):
    (tmp_path / 'out/work').mkdir(parents=True)
    (work_dir / 'epoch_1.pth').rename(tmp_path / 'out/work/epoch_1.pth')
    truncate(work_dir / 'epoch_2.pth')
    assert record_epochs(short_run_cfg(data_root, work_dir, epochs=2, out_dir=str(tmp_path / 'out'))) == [2]
    assert saved(tmp_path / 'out/work') == ['epoch_1.pth', 'epoch_2.pth']


def test_training_without_resume_starts_anew(data_root, work_dir):
    (work_dir / 'last_checkpoint').unlink()
    assert record_epochs(short_run_cfg(data_root, work_dir, epochs=1), resume=False) == [1]
    assert 'Training resumes' not in read_log(work_dir)


def test_resume_without_any_checkpoint_starts_anew(tmp_path, data_root):
    assert record_epochs(short_run_cfg(data_root, tmp_path, epochs=1)) == [1]


def test_resume_from_a_given_checkpoint(data_root, work_dir):
    (work_dir / 'last_checkpoint').unlink()
    cfg = short_run_cfg(data_root, work_dir, epochs=2)
    cfg.load_from = str(work_dir / 'epoch_1.pth')
    assert record_epochs(cfg) == [2]


def test_resume_if_all_checkpoints_are_incomplete(data_root, work_dir):
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        truncate(work_dir / name)
    with pytest.raises(CheckpointError, match=r'epoch_2\.pth is truncated'):
        train(short_run_cfg(data_root, work_dir, epochs=3), resume=True)


def test_checkpoint_without_some_of_the_weights_is_not_resumed(tmp_path, data_root, two_epochs):
    checkpoint = torch.load(two_epochs / 'epoch_2.pth', weights_only=True)
    del checkpoint['state_dict']['mask_head.conv_embed.weight']
    torch.save(checkpoint, tmp_path / 'incomplete.pth')
    cfg = short_run_cfg(data_root, tmp_path / 'work', epochs=3)
    cfg.load_from = str(tmp_path / 'incomplete.pth')
    with pytest.raises(ValueError, match=r'incomplete\.pth .*mask_head\.conv_embed\.weight'):
        train(cfg, resume=True)


OLD_SCALE = 'bbox_head.position.scale'  # name of the frame's scale in version 0.1
AFTER_OLD_SCALE = 'bbox_head.cls_convs.0.conv.weight'


def convert_to_version_1(checkpoint, parameter_names):
    """Move the frame's scale into the box head, among the weights and among the optimizer's parameters."""
    scale = checkpoint['state_dict'].pop('frame.scale')
    weights = list(checkpoint['state_dict'].items())
    weights.insert([name for name, _ in weights].index(AFTER_OLD_SCALE), (OLD_SCALE, scale))
    checkpoint['state_dict'] = dict(weights)
    groups = checkpoint['optimizer']['param_groups']
    parameters = groups if len(groups) > 1 else groups[0]['params']
    assert len(parameters) == len(parameter_names)
    parameters.insert(parameter_names.index(AFTER_OLD_SCALE), parameters.pop())


@pytest.mark.parametrize('is_one_group', [False, True], ids=['a group for each parameter', 'one group'])
def test_training_of_version_1_is_resumed(tmp_path, data_root, is_one_group):
    cfg = short_run_cfg(data_root, tmp_path / 'new', epochs=2)
    if is_one_group:
        cfg.optim_wrapper.paramwise_cfg = None
    model = train(cfg).model
    parameters = [name for name, weight in model.named_parameters() if weight.requires_grad or is_one_group]
    checkpoint = torch.load(tmp_path / 'new/epoch_1.pth', weights_only=True)
    convert_to_version_1(checkpoint, parameters)
    torch.save(checkpoint, tmp_path / 'old.pth')
    cfg.work_dir, cfg.load_from = str(tmp_path / 'old'), str(tmp_path / 'old.pth')
    resumed = train(cfg, resume=True).model
    assert largest_difference(model.state_dict(), resumed.state_dict()) < 1e-6


def test_checkpoint_of_another_model_is_not_resumed(tmp_path, data_root):
    torch.save({'state_dict': {'backbone.weight': torch.ones(1)}}, tmp_path / 'other.pth')
    cfg = short_run_cfg(data_root, tmp_path / 'work', epochs=3)
    cfg.load_from = str(tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other\.pth is not a checkpoint of this model'):
        train(cfg, resume=True)


def train_until_half_a_checkpoint(cfg, marker, which):
    """Train, and hang in the middle of writing the checkpoint of index ``which``."""
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
    """Train, and create a file when the first iteration is about to begin."""

    class Mark(Record):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            marker.touch()

    train(cfg, resume=True, hooks=(Mark(),))


@pytest.mark.slow
def test_killed_ten_times(tmp_path, data_root):
    epochs = 14
    expected = train(short_run_cfg(data_root, tmp_path / 'uninterrupted', epochs, interval=epochs)).model.state_dict()
    work_dir = tmp_path / 'killed'
    cfg = short_run_cfg(data_root, work_dir, epochs, max_keep_ckpts=1)
    # Its server imports torch once, so its children start quickly.
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
