"""The notations of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from umvm import specs
from umvm.errors import UsageError


def test_options() -> None:
    assert specs.parse_options("a=b,flag,,c=d=e") == {"a": "b", "flag": "", "c": "d=e"}
    assert specs.parse_options(r"a=1\,2,b=\x") == {"a": "1,2", "b": r"\x"}
    assert specs.parse_options("") == {}
    with pytest.raises(UsageError, match="without a name"):
        specs.parse_options("=b")


def test_module() -> None:
    assert specs.parse_module("ident,uid=0") == ("ident", {"uid": "0"})
    spec, options = specs.parse_module("./a.py")
    assert spec == f"{os.getcwd()}/./a.py" and options == {}
    with pytest.raises(UsageError):
        specs.parse_module(",a=b")


def test_mount() -> None:
    mount = specs.parse_mount("memory:none:/mnt:size=1M,ro")
    assert mount == specs.MountSpec("memory", "none", "/mnt", {"size": "1M", "ro": ""})
    assert specs.parse_mount("memory::mnt").target == f"{os.getcwd()}/mnt"
    escaped = specs.parse_mount(r"fusepy:x.py\:Class:/m\:nt")
    assert (escaped.source, escaped.target) == ("x.py:Class", "/m:nt")
    assert specs.parse_mount("t:s:/m:a=b:c").options == {"a": "b:c"}
    for bad in ("memory", "memory:none", ":none:/mnt", "memory:none:"):
        with pytest.raises(UsageError, match="expected TYPE"):
            specs.parse_mount(bad)


def test_source_of_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fs.py").touch()
    assert specs.absolute_source("fs.py:Class") == f"{tmp_path}/fs.py:Class"
    assert specs.absolute_source("./new:C") == f"{tmp_path}/./new:C"
    assert specs.absolute_source("none") == "none"
    assert specs.absolute_source("/a:b") == "/a:b"


@pytest.mark.parametrize("name", ["a", "my-vm.1", "_x", "9", "a" * 64])
def test_good_names(name: str) -> None:
    assert specs.check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "a/b", "a b", "é", "a" * 65, "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="bad name"):
        specs.check_name(name)
