"""What is wrong with a config file that cannot be read."""

from __future__ import annotations

import traceback
from pathlib import Path

from mmengine.config import Config


def explain_config_error(config: str) -> str | None:
    """Read a config file, without its ``custom_imports``.

    Returns:
        What is wrong with it or with a file that it inherits from; None if all can be read.
    """
    try:
        Config.fromfile(config, import_custom_modules=False)
    except SyntaxError as error:
        file = _find_files(error, config)[-1]
        return f'{file}, line {error.lineno}: {error.msg}. Correct this line or the one before.'
    except Exception as error:
        files = _find_files(error, config)
        if isinstance(error, FileNotFoundError) and error.filename:
            return (
                f'{files[-1]} inherits from {error.filename}, which does not exist. Correct _base_; the path is '
                'relative to the folder of the config.'
            )
        return f'{_find_place(error, files)}: {type(error).__name__}: {error}'
    return None


def _find_files(error: Exception, config: str) -> list[str]:
    """List the config files that MMEngine was reading, outermost first."""
    names = [str(frame.f_locals.get('filename', '')) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [config, *(name for name in names if Path(name).is_file())]


def _find_place(error: Exception, files: list[str]) -> str:
    """Return file, line and text of the statement that failed, or only the file if the error is not of a statement."""
    inside = [entry for entry in traceback.extract_tb(error.__traceback__) if entry.filename in files]
    return f'{inside[-1].filename}, line {inside[-1].lineno}, `{inside[-1].line}`' if inside else files[-1]
