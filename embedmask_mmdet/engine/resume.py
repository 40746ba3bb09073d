"""Checkpoints that are complete or not there at all, so that ``--resume`` works after any interruption."""

from __future__ import annotations

import os
import re
import zipfile
from collections import deque
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmengine.runner.checkpoint import find_latest_checkpoint

from embedmask_mmdet.fileio import write_atomically

ATOMIC = 'embedmask_atomic'


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


@HOOKS.register_module()
class EmbedMaskCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` for training that can be killed at any moment and resumed.

    It writes each file completely or not at all, removes an outdated checkpoint only after the new one was written,
    and resumes from the newest complete checkpoint. Checkpoints in remote storage are written as MMEngine does.
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
