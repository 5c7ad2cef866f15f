"""Settings files."""

from __future__ import annotations

from pathlib import Path

import pytest

from umvm import config
from umvm.errors import UsageError


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_all_keys(tmp_path: Path) -> None:
    path = write(
        tmp_path / "umvm.toml",
        'name = "n"\nmodules = ["fuse"]\nmounts = ["memory:none:/mnt"]\nkill_on_exit = true\n'
        '[env]\nA = "b"\n',
    )
    assert config.read(path) == {
        "name": "n",
        "modules": ["fuse"],
        "mounts": ["memory:none:/mnt"],
        "kill_on_exit": True,
        "env": {"A": "b"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 3", "name must be a str"),
        ("modules = 'fuse'", "modules must be a list"),
        ("modules = [1]", "strings only"),
        ("[env]\nA = 1", "strings only"),
        ("kill_on_exit = 1", "kill_on_exit must be a bool"),
        ("speed = 1", "unknown key 'speed'"),
        ("name =", "umvm.toml: "),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.read(write(tmp_path / "umvm.toml", text))


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        config.read(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(UsageError, match=r"latin\.toml"):
        config.read(str(tmp_path / "latin.toml"))


def test_profile_is_in_the_settings_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.profile("web") == str(tmp_path / "umvm" / "web.toml")
    with pytest.raises(UsageError, match="bad name"):
        config.profile("../web")
