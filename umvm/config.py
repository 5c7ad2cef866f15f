"""Settings files: TOML with what `umvm run` takes as options.

    name = "build"
    modules = ["fuse", "./mine.py,debug"]
    mounts = ["memory:none:/mnt:size=64M"]
    kill_on_exit = true

    [env]
    LANG = "C"

A file is read only when it is named, by `--config FILE` or `--profile NAME`.
"""

from __future__ import annotations

import os
from typing import Any

from umvm.errors import UsageError
from umvm.run_cli import SETTINGS
from umvm.specs import check_name


def profile(name: str) -> str:
    """The path of a profile: NAME.toml in the user's settings directory of umvm."""
    import platformdirs

    return os.path.join(platformdirs.user_config_dir("umvm"), f"{check_name(name)}.toml")


def read(path: str) -> dict[str, Any]:
    """Read a settings file.

    **Errors** UsageError: it can't be read, is not TOML, or has an unknown or mistyped key.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            settings = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{path}: {error}") from error
    for key, value in settings.items():
        kind = SETTINGS.get(key)
        if kind is None:
            raise UsageError(f"{path}: unknown key {key!r} (known: {', '.join(SETTINGS)})")
        if not isinstance(value, kind):
            raise UsageError(f"{path}: {key} must be a {kind.__name__}")
        parts: list[Any] = []
        if isinstance(value, list | dict):
            parts = list(value.values() if isinstance(value, dict) else value)
        if not all(isinstance(part, str) for part in parts):
            raise UsageError(f"{path}: {key} may hold strings only")
    return settings
