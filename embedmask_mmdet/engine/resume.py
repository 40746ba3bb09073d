"""Checkpoints that are complete or not there at all, so that ``--resume`` works after any interruption."""

from __future__ import annotations

import os
import re
import zipfile
from collections import deque
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from mmengine.runner.checkpoint import find_latest_checkpoint

from embedmask_mmdet.fileio import write_atomically

ATOMIC = 'embedmask_atomic'
HISTORY_KEYS = ('log_history', 'count_history')


@register_backend(ATOMIC)
class AtomicBackend(LocalBackend):
    """Local files that get their name only when they are complete."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file under a temporary name in its folder, then rename it.

        Args:
            obj: Content of the file.
            filepath: Where to write. Missing folders are created; a file that is already there is replaced.
        """
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(filepath, obj)


def is_complete(path: str | Path) -> bool:
    """Return whether a checkpoint was written to its end, which is where zip files have their directory."""
    return zipfile.is_zipfile(path)


def make_plain(message_hub: dict) -> None:
    """Replace the classes in the state of MMEngine's message hub by tensors and numbers, in place.

    Programs that know nothing of this package can then load a checkpoint with torch's safe unpickler, for example
    ``DetInferencer(weights=...)`` and MMDetection's ``publish_model.py``.

    Args:
        message_hub: ``MessageHub.state_dict()``.
    """
    scalars, info = message_hub['log_scalars'], message_hub['runtime_info']
    for key, history in scalars.items():
        if isinstance(history, HistoryBuffer):
            scalars[key] = dict(zip(HISTORY_KEYS, map(torch.from_numpy, history.data)), max_length=history.max_length)
    for key, value in info.items():
        if isinstance(value, np.generic):
            info[key] = value.item()


def restore_histories(message_hub: dict) -> None:
    """Undo what :func:`make_plain` did to the histories of logged values, in place."""
    scalars = message_hub['log_scalars']
    for key, saved in scalars.items():
        if isinstance(saved, dict) and HISTORY_KEYS[0] in saved:
            scalars[key] = HistoryBuffer(*(saved[name].numpy() for name in HISTORY_KEYS), saved['max_length'])


@HOOKS.register_module()
class EmbedMaskCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` for training that can be killed at any moment and resumed.

    It writes each file completely or not at all, removes an outdated checkpoint only after the new one was written,
    and resumes from the newest complete checkpoint. Checkpoints in remote storage are written as MMEngine does.
    Other programs can load its checkpoints with torch's safe unpickler, see :func:`make_plain`.
    """

    def before_run(self, runner: Runner) -> None:
        """Resume from the newest complete checkpoint if the one that ``last_checkpoint`` names is incomplete."""
        if not runner._resume or runner._load_from is not None:
            return
        last = find_latest_checkpoint(runner.work_dir)
        if last and (not self._is_local(last) or is_complete(last)):
            return
        complete = [path for path in self._list_checkpoints(runner) if is_complete(path)]
        if complete:
            runner._load_from = str(max(complete, key=os.path.getmtime))
            runner.logger.warning(
                f'{runner.work_dir}/last_checkpoint names {last or "no checkpoint"}, which is not a complete '
                f'checkpoint. Training resumes from {runner._load_from}, the newest complete one.'
            )

    def _list_checkpoints(self, runner: Runner) -> list[Path]:
        work_dir = Path(runner.work_dir)
        folder = work_dir if self.out_dir is None else Path(self.out_dir) / work_dir.name
        name = re.escape(self.filename_tmpl).replace(re.escape('{}'), r'\d+')
        return [path for path in folder.glob('*') if re.fullmatch(name, path.name)]

    @staticmethod
    def _is_local(path: str) -> bool:
        return isinstance(get_file_backend(path), LocalBackend)

    def before_train(self, runner: Runner) -> None:
        """Write local files atomically."""
        if self.backend_args is None and self.file_client_args is None and self._is_local(self.out_dir or '.'):
            self.backend_args = dict(backend=ATOMIC)
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            # MMEngine's deque drops its first id when it is full, and its file would then stay forever.
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leave only what torch's safe unpickler knows."""
        if 'message_hub' in checkpoint:
            make_plain(checkpoint['message_hub'])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore what :meth:`before_save_checkpoint` replaced."""
        if 'message_hub' in checkpoint:
            restore_histories(checkpoint['message_hub'])

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save a checkpoint, then remove outdated ones. MMEngine removes them first, and may leave none."""
        num_kept = self.max_keep_ckpts
        self.max_keep_ckpts = num_kept + 1
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = num_kept
        # The new checkpoint still lists the outdated ones, so a resumed training removes them if this is interrupted.
        while 0 < num_kept < len(self.keep_ckpt_ids):
            self._remove(self.keep_ckpt_ids.popleft())

    def _remove(self, step: int) -> None:
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
