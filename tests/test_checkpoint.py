"""Checkpoints that training wrote load with the safe unpickler. Files that cannot be loaded are explained by name."""

import os
import pickle
import re
import zipfile
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from torch.utils.data import Dataset

from embedmask_mmdet.engine.checkpoint import get_history_method
from embedmask_mmdet.errors import CheckpointError

needs_safe_default = pytest.mark.skipif(
    not hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'),
    reason='torch before 2.6 loads without the safe unpickler',
)


class Numbers(Dataset):
    METAINFO = {'classes': ('one',)}
    metainfo = METAINFO

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {'inputs': torch.full((2,), float(index))}


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.linear(inputs).square().mean()}


def build_runner(work_dir, max_epochs, **kwargs):
    return Runner(
        model=Line(),
        work_dir=str(work_dir),
        train_dataloader={
            'dataset': Numbers(),
            'sampler': {'type': DefaultSampler, 'shuffle': True},
            'batch_size': 2,
            'num_workers': 0,
            'collate_fn': {'type': 'default_collate'},
        },
        train_cfg={'by_epoch': True, 'max_epochs': max_epochs},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 1e-3, 'momentum': 0.9}},
        param_scheduler=[{'type': 'LinearLR', 'start_factor': 0.1, 'end': 6, 'by_epoch': False}],
        default_hooks={'logger': {'type': 'LoggerHook', 'interval': 1}, 'checkpoint': {'type': 'CheckpointHook'}},
        experiment_name=f'{work_dir.name}-{max_epochs}',
        **kwargs,
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    build_runner(work_dir, max_epochs=2).train()
    return work_dir / 'epoch_2.pth'


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def test_trained_checkpoint_loads_with_the_safe_unpickler(trained):
    checkpoint = torch.load(trained, weights_only=True)
    losses = checkpoint['message_hub']['log_scalars']['train/loss']
    assert len(losses.data[0]) == 8
    assert losses.statistics('mean') == pytest.approx(losses.data[0].mean())
    assert torch.equal(
        load_checkpoint(Line(), str(trained))['state_dict']['linear.weight'], checkpoint['state_dict']['linear.weight']
    )


@needs_safe_default
def test_training_writes_what_torch_alone_refuses(trained):
    # If this fails, MMEngine or torch allows these classes itself, and our list can be deleted.
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
            torch.load(trained)
    finally:
        torch.serialization.add_safe_globals(allowed)


def test_training_resumes(trained):
    runner = build_runner(trained.parent, max_epochs=3, resume=True)
    runner.train()
    assert (runner.epoch, runner.iter) == (3, 12)
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 12


@pytest.mark.parametrize('dtype', ['float64', 'float32', 'float16', 'int64', 'int32', 'uint8', 'bool'])
@pytest.mark.parametrize('core', ['core', '_core'])
@needs_safe_default
def test_numpy_objects_load_under_the_names_of_both_versions(tmp_path, dtype, core):
    holder = {'state_dict': {'w': torch.ones(1)}, 'array': np.ones(3, dtype), 'number': np.ones(1, dtype)[0]}
    path = tmp_path / 'numpy.pth'
    torch.save(holder, path)
    renamed = tmp_path / 'renamed.pth'
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(renamed, 'w', zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith('data.pkl'):
                data = re.sub(rb'cnumpy\._?core\.', f'cnumpy.{core}.'.encode(), data)
            target.writestr(name, data)
    loaded = torch.load(renamed, weights_only=True)
    assert loaded['array'].dtype == dtype
    assert loaded['array'].tolist() == [1, 1, 1]
    assert loaded['number'] == 1


@pytest.mark.parametrize(
    ('attack', 'function'),
    [
        (lambda marker: Call(os.system, f'touch {marker}'), r'posix\.system'),
        (lambda marker: Call(exec, f'open({str(marker)!r}, "w")'), r'(\w+\.)?exec'),
        (lambda marker: Call(getattr, HistoryBuffer, '__init__'), r'builtins\.getattr'),
        (lambda marker: Call(getattr, 'text', 'format'), r'builtins\.getattr'),
    ],
    ids=['os.system', 'exec', 'getattr of __init__', 'getattr of a string'],
)
@needs_safe_default
def test_code_in_a_checkpoint_is_refused(tmp_path, attack, function):
    marker, path = tmp_path / 'ran', tmp_path / 'evil.pth'
    torch.save({'state_dict': {'w': torch.ones(1)}, 'extra': attack(marker)}, path)
    with pytest.raises(
        CheckpointError, match=rf'evil\.pth needs {function}, which could run code, so it was not loaded'
    ):
        load_checkpoint(Line(), str(path))
    assert not marker.exists()


def test_history_methods_are_all_that_getattr_gives():
    for name in ('min', 'max', 'mean', 'current'):
        assert get_history_method(HistoryBuffer, name) is getattr(HistoryBuffer, name)
    for owner, name in [
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, '__globals__'),
        (HistoryBuffer.mean, '__globals__'),
        (HistoryBuffer(), 'mean'),
        (os, 'system'),
        (type('HistoryBuffer', (), {'mean': os.system}), 'mean'),
    ]:
        with pytest.raises(pickle.UnpicklingError):
            get_history_method(owner, name)


def write_truncated(path, trained):
    path.write_bytes(trained.read_bytes()[:-200])


def write_damaged(path, trained):
    data = bytearray(trained.read_bytes())
    start = data.find(b'data.pkl') + 200
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)


def write_zip(path, trained):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('photo.jpg', b'1234')


def write_undamaged_nonsense(path, trained):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'1234')


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (lambda path, trained: None, r'bad.pth does not exist\. Checkpoints in .*: good.pth'),
        (lambda path, trained: path.mkdir(), r'bad.pth does not exist\. Checkpoints in .*: good.pth'),
        (lambda path, trained: path.touch(), r'bad.pth is empty\. .* Checkpoints in .*: good.pth, bad.pth'),
        (write_truncated, r'bad.pth is truncated \(\d+ bytes\)\. .*good.pth'),
        (write_damaged, r'bad.pth is damaged in \S+data.pkl\. .*good.pth'),
        (write_undamaged_nonsense, 'bad.pth could not be loaded: .'),
        (write_zip, 'bad.pth is not a checkpoint: .*good.pth'),
        (lambda path, trained: path.write_text('epoch 3, AP 0.5\n'), 'bad.pth is not a checkpoint'),
        (lambda path, trained: path.write_bytes(pickle.dumps({'a': 1})), 'bad.pth is not a checkpoint'),
        (lambda path, trained: path.write_bytes(os.urandom(4096)), 'bad.pth is not a checkpoint'),
        (lambda path, trained: torch.save([torch.ones(1)], path), 'bad.pth holds no weights: .*good.pth'),
        (lambda path, trained: torch.save({'state_dict': {}}, path), 'bad.pth holds no weights'),
        (lambda path, trained: torch.save({'state_dict': {'epoch': 3}}, path), 'bad.pth holds no weights'),
        (lambda path, trained: torch.save({'state_dict': [torch.ones(1)]}, path), 'bad.pth holds no weights'),
        (lambda path, trained: torch.save({'state_dict': 3, 'w': torch.ones(1)}, path), 'bad.pth holds no weights'),
    ],
    ids=[
        'missing',
        'folder',
        'empty',
        'truncated',
        'damaged',
        'undamaged nonsense',
        'zip',
        'text',
        'pickle',
        'noise',
        'list',
        'no weights',
        'no tensors',
        'list of weights',
        'number for weights',
    ],
)
def test_bad_file_is_named(tmp_path, trained, write, message):
    (tmp_path / 'good.pth').write_bytes(trained.read_bytes())
    os.utime(tmp_path / 'good.pth', (1, 1))
    path = tmp_path / 'bad.pth'
    write(path, trained)
    with pytest.raises((CheckpointError, FileNotFoundError), match=message):
        load_checkpoint(Line(), str(path))


def test_newest_checkpoints_of_the_folder_are_offered(tmp_path):
    with pytest.raises(FileNotFoundError, match='Checkpoints in .*: none'):
        load_checkpoint(Line(), str(tmp_path / 'a.pth'))
    for epoch in range(12):
        path = tmp_path / f'epoch_{epoch}.pth'
        path.touch()
        os.utime(path, (epoch, epoch))
    (tmp_path / 'folder.pth').mkdir()
    (tmp_path / 'log.txt').touch()
    names = ', '.join(f'epoch_{epoch}.pth' for epoch in range(4, 12))
    with pytest.raises(FileNotFoundError, match=rf'Checkpoints in .*: {names}\.$'):
        load_checkpoint(Line(), str(tmp_path / 'a.pth'))


@pytest.mark.parametrize('error', [MemoryError, torch.cuda.OutOfMemoryError])
def test_too_little_memory_is_not_blamed_on_the_file(trained, monkeypatch, error):
    monkeypatch.setattr(torch, 'load', mock.Mock(side_effect=error))
    with pytest.raises(error):
        load_checkpoint(Line(), str(trained))


def test_path_in_the_home_folder(trained, monkeypatch):
    monkeypatch.setenv('HOME', str(trained.parent))
    assert 'state_dict' in load_checkpoint(Line(), f'~/{trained.name}')


def test_map_location_is_passed_on(trained):
    checkpoint = CheckpointLoader.load_checkpoint(str(trained), map_location='meta')
    assert checkpoint['state_dict']['linear.weight'].is_meta


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'The folder .*nowhere does not exist either'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'nowhere' / 'a.pth'))


def test_bare_weights_load(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(Line().state_dict(), path)
    assert set(load_checkpoint(Line(), str(path))) == {'linear.weight', 'linear.bias'}
