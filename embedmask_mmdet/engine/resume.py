"""Checkpoints that survive being interrupted at any moment, so that ``--resume`` always finds a whole one."""

from __future__ import annotations

import os
import re
import zipfile
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
    """Local files that bear their name only once they are whole."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file beside its place and move it there.

        Args:
            obj: Content.
            filepath: What is there before is replaced in one step.
        """
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(filepath, obj)


def is_whole(path: str | Path) -> bool:
    """Tell whether a checkpoint was written to its end, where zip files have their table of contents."""
    return zipfile.is_zipfile(path)


@HOOKS.register_module()
class EmbedMaskCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, but training can be killed at any moment and resumed.

    Files appear whole or not at all; an outdated checkpoint is removed only after the new one is in its place; and
    resuming passes over a file that is cut off. Checkpoints in remote storage are written as by MMEngine.
    """

    def before_run(self, runner: Runner) -> None:
        """Choose what to resume from: what ``last_checkpoint`` names or, if that is not whole, the newest whole one."""
        if not runner._resume or runner._load_from is not None:
            return
        named = find_latest_checkpoint(runner.work_dir)
        if named and (not self._is_local(named) or is_whole(named)):
            return
        whole = [path for path in self._checkpoints(runner) if is_whole(path)]
        if whole:
            runner._load_from = str(max(whole, key=os.path.getmtime))
            runner.logger.warning(
                f'{runner.work_dir}/last_checkpoint names no whole checkpoint ({named}): resuming from '
                f'{runner._load_from}, the newest that is'
            )

    def _checkpoints(self, runner: Runner) -> list[Path]:
        work_dir = Path(runner.work_dir)
        folder = work_dir if self.out_dir is None else Path(self.out_dir) / work_dir.name
        name = re.escape(self.filename_tmpl).replace(re.escape('{}'), r'\d+')
        return [path for path in folder.glob('*') if re.fullmatch(name, path.name)]

    @staticmethod
    def _is_local(path: str) -> bool:
        return isinstance(get_file_backend(path), LocalBackend)

    def before_train(self, runner: Runner) -> None:
        """Have local files written atomically."""
        if self.backend_args is None and self.file_client_args is None and self._is_local(self.out_dir or '.'):
            self.backend_args = dict(backend=ATOMIC)
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = type(self.keep_ckpt_ids)(self.keep_ckpt_ids)  # without a largest length

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save; remove outdated checkpoints after that. MMEngine removes them before, and may leave none."""
        num_kept = self.max_keep_ckpts
        self.max_keep_ckpts = num_kept + 1
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = num_kept
        # The new checkpoint still lists what is removed here, so that resuming does it if this is interrupted.
        while 0 < num_kept < len(self.keep_ckpt_ids):
            self._remove(self.keep_ckpt_ids.popleft())

    def _remove(self, step: int) -> None:
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
