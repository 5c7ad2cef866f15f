"""Classes for fusepy and mfusepy as mounts: their life, mount options, how they are found."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fuse_objects import FUSE, MFUSE, REG, Recorder, number_of, program
from umvm.modules.fuse import mount
from umvm.modules.fuse.program import find, standin

from umvm.errors import NotFound, UmvmError, UsageError
from umvm.interfaces import fuse_options
from umvm.interfaces.filesystem import Caller, Entry, set_caller
from umvm.interfaces.fuse_adapter import FuseAdapter
from umvm.interfaces.fuse_options import FuseOptions, OptionError
from umvm.standin import names

# --- life -------------------------------------------------------------------------------------


def test_init_and_destroy_are_called_once() -> None:
    recorder = Recorder()
    fs = FuseAdapter(recorder)
    fs.destroy()
    assert not recorder.calls, "destroy follows init"
    for call in (fs.init, fs.init, fs.destroy, fs.destroy):
        call()
    assert recorder.calls == [("init", "/"), ("destroy", "/")]


def test_an_init_that_fails_refuses_the_mount() -> None:
    for failure, number in ((OSError(errno.ENODEV, "x"), errno.ENODEV), (ValueError("y"), 22)):
        fs = FuseAdapter(Recorder(init=failure))
        assert number_of(fs.init) == number


def test_init_with_config_sees_and_changes_the_configuration() -> None:
    class Configured(MFUSE.Operations):  # type: ignore[misc]
        def init(self, path: str) -> None:
            raise AssertionError("one of both only")

        def init_with_config(self, conn_info: Any, config_3: Any) -> None:
            assert conn_info.proto_major == 7
            assert (config_3.set_uid, config_3.uid, config_3.attr_timeout) == (1, 5, 2.5)
            config_3.use_ino = config_3.hard_remove = config_3.nullpath_ok = 1
            config_3.entry_timeout = 9.0
            config_3.set_uid = 0

    fs = FuseAdapter(Configured(), FuseOptions(uid=5, attr_timeout=2.5))
    fs.init()
    assert (fs.stable_inodes, fs.open_unlinked, fs.entry_timeout) == (True, True, 9.0)
    assert (fs.options.nopath, fs.options.uid) == (True, None)


def test_operations_on_handles_may_do_without_the_path() -> None:
    recorder = Recorder(read=b"ab")
    recorder.flag_nopath = True
    fs = FuseAdapter(recorder)
    fs.read(b"/a", 5, 1, 0)
    fs.truncate(b"/a", 1, 5)
    fs.truncate(b"/a", 1)
    fs.getattr(b"/a", 5)
    fs.release(b"/a", 5)
    asked = [call[:2] for call in recorder.calls]
    assert asked[:2] == [("getattr", None), ("read", None)]
    assert [path for _, path in asked[2:]] == [None, "/a", None, None]


def test_a_program_for_mfusepy() -> None:
    fs = program("fuse_mfusepy.py")
    assert fs.stable_inodes
    fh = fs.create(b"/a", 0o640, os.O_RDWR)
    assert fs.write(b"/a", fh, b"xyz", 2) == 3
    assert fs.read(b"/a", fh, 9, 0) == b"\0\0xyz"
    assert fs.getattr(b"/a", fh)[:3] == (REG | 0o640, 100, 1)
    fs.utimens(b"/a", 1, 2)
    assert fs.getattr(b"/a")[7:9] == (1, 2)
    assert Entry(b"a", 100, REG) in list(fs.readdir(b"/", fs.opendir(b"/")))


def test_a_program_with_raw_fi() -> None:
    fs = program("fuse_raw_fi.py", raw_fi="")
    fh = fs.create(b"/a", 0o600, os.O_RDWR)
    assert (fh.fh, fh.direct_io, fh.flags) == (100, 1, os.O_RDWR | os.O_CREAT)
    fs.write(b"/a", fh, b"abc", 0)
    other = fs.open(b"/a", os.O_RDONLY)
    assert (other.fh, fs.read(b"/a", other, 9, 1)) == (101, b"bc")
    fs.release(b"/a", fh)
    assert number_of(lambda: fs.read(b"/a", fh, 9, 0)) == errno.EBADF
    assert Entry(b"a") in list(fs.readdir(b"/", fs.opendir(b"/")))


def test_a_loopback(tmp_path: Path) -> None:
    fs = program("fuse_loopback.py", root=str(tmp_path))
    fs.mkdir(b"/d", 0o750)
    fh = fs.create(b"/d/f", 0o600, os.O_RDWR)
    assert fs.write(b"/d/f", fh, b"hello", 1) == 5
    fs.release(b"/d/f", fh)
    fs.link(b"/d/f", b"/d/g")
    fs.symlink(b"f", b"/d/l")
    fs.chmod(b"/d/f", 0o640)
    fs.utimens(b"/d/f", 10**9, 2 * 10**9)
    fs.rename(b"/d/g", b"/h")
    assert fs.readlink(b"/d/l") == b"f"
    host, attr = os.lstat(tmp_path / "d/f"), fs.getattr(b"/d/f")
    assert (attr.mode, attr.nlink, attr.size) == (host.st_mode, 2, 6)
    assert (attr.atime_ns, attr.mtime_ns) == (10**9, 2 * 10**9)
    assert (tmp_path / "h").read_bytes() == b"\0hello"
    assert {entry.name for entry in fs.readdir(b"/d", 0)} == {b".", b"..", b"f", b"l"}
    assert number_of(lambda: fs.rmdir(b"/d")) == errno.ENOTEMPTY
    assert number_of(lambda: fs.open(b"/none", 0)) == errno.ENOENT


# --- options ----------------------------------------------------------------------------------


def test_options_are_taken_apart() -> None:
    options, rest = fuse_options.parse(
        {"allow_other": "", "umask": "022", "uid": "7", "use_ino": "", "root": "/x", "nosuid": "",
         "entry_timeout": "0.5", "max_read": "4096", "x-systemd.automount": ""}
    )  # fmt: skip
    assert rest == {"root": "/x"}
    assert (options.umask, options.uid, options.entry_timeout) == (0o22, 7, 0.5)
    with pytest.raises(OptionError, match="uid"):
        fuse_options.parse({"uid": "me"})
    with pytest.raises(OptionError, match=r"unknown option root; known are .*allow_other"):
        fuse_options.refuse_unknown(rest)


def test_what_the_vm_sees_of_the_options() -> None:
    fs = FuseAdapter(Recorder())
    assert (fs.default_permissions, fs.open_unlinked, fs.stable_inodes) == (False, False, False)
    assert (fs.serialized, fs.entry_timeout) == (False, 1.0)
    options = FuseOptions(default_permissions=True, hard_remove=True, use_ino=True, nothreads=True)
    fs = FuseAdapter(Recorder(), options)
    assert (fs.default_permissions, fs.open_unlinked, fs.stable_inodes) == (True, True, True)
    assert fs.serialized


def test_debug_logs_each_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "umvm.fuse")
    FuseAdapter(Recorder(), FuseOptions(debug=True)).unlink(b"/a")
    assert [record.getMessage() for record in caplog.records] == [
        "-> unlink('/a',)",
        "<- unlink: 0",
    ]


# --- mounting a class -------------------------------------------------------------------------

PROGRAM = """
from fuse import Operations, fuse_get_context
import helper

class Base(Operations):
    pass

class Given(Operations):
    def __init__(self, root, size=1, ratio: float = 1.0, on=False, names: "list | None" = None,
                 limit: "int | None" = 3, debug="x", *, key: bytes = b""):
        self.got = (root, size, ratio, on, names, limit, debug, key)

    def later(self):
        from fuse import FuseOSError
        return FuseOSError

class Anything(Operations):
    def __init__(self, **options):
        self.got = options

def make(value):
    return Anything(value=value)

made = Anything(made=True)
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text("from fuse import FuseOSError\n")
    return str(tmp_path / "program.py")


def got(source: str, **options: str) -> Any:
    fs = mount(source, {key.replace("__", "."): value for key, value in options.items()})
    assert isinstance(fs, FuseAdapter)
    return fs.operations.got


def test_options_become_arguments_of_their_type(source: str) -> None:
    given = f"{source}:Given"
    assert got(given, root="5") == ("5", 1, 1.0, False, None, 3, "x", b"")
    assert got(given, root="r", size="0x10", ratio="2", on="", limit="none", key="k") == (
        ("r", 16, 2.0, True, None, None, "x", b"k")
    )
    assert got(given, root="r", debug="", arg__debug="d", arg__on="no")[3:7:3] == (False, "d")
    assert got(f"{source}:Anything", a="1", ro="") == {"a": "1"}
    assert got(f"{source}:make", value="v") == {"value": "v"}
    assert got(f"{source}:made") == {"made": True}


def test_wrong_options_and_names_are_refused(source: str) -> None:
    given = f"{source}:Given"
    for text, options, error in (
        (given, {}, UsageError),
        (given, {"root": "r", "size": "many"}, UsageError),
        (given, {"root": "r", "none": ""}, OptionError),
        (f"{source}:made", {"none": ""}, OptionError),
        (f"{source}:Missing", {}, NotFound),
        (f"{source}x:Given", {}, NotFound),
        ("no.such.module:Class", {}, NotFound),
        (source, {}, UsageError),  # several classes
        ("", {}, UsageError),
    ):
        with pytest.raises(error):
            mount(text, options)


@pytest.mark.parametrize("failure", ["SystemExit(2)", "RuntimeError('no')"])
def test_a_class_that_cannot_be_made_is_reported(tmp_path: Path, failure: str) -> None:
    path = tmp_path / "refuses.py"
    path.write_text(f"import fuse\nclass A(fuse.Operations):\n def __init__(self): raise {failure}")
    with pytest.raises(UmvmError, match=failure.partition("(")[0]):
        mount(str(path), {})


def test_a_file_that_fails_or_exits_is_reported(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("1 / 0")
    (tmp_path / "exits.py").write_text("raise SystemExit(4)")
    for name in ("fails.py", "exits.py"):
        with pytest.raises(UmvmError, match=name):
            find(f"{tmp_path / name}:X")


def test_the_present_code_is_mounted_each_time(tmp_path: Path) -> None:
    path = tmp_path / "changing.py"
    for number in (1, 2):
        path.write_text(
            f"import fuse\nclass One(fuse.Operations):\n def __init__(self): self.got = {number}\n"
        )
        assert got(str(path)) == number


def test_the_stand_in_gives_way_to_a_module_that_was_there() -> None:
    before = {name: sys.modules.pop(name, None) for name in names.MODULES}
    real = ModuleType("fuse")
    try:
        sys.modules["fuse"] = real
        with standin():
            import fuse

            assert fuse is not real
            assert issubclass(fuse.FuseOSError, OSError)
        assert sys.modules["fuse"] is real
        assert hasattr(sys.modules["mfusepy"], "overrides"), "nothing was there: it stays"
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def test_fuse_itself_is_for_programs_only(source: str, tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.use_ns = True
    with pytest.raises(RuntimeError):
        FUSE.FUSE(recorder, str(tmp_path), foreground=True)


def test_without_threads_all_happens_in_one_thread(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text(SINGLE)
    fs = mount(str(tmp_path / "single.py"), {"nothreads": ""})
    assert isinstance(fs, FuseAdapter)
    fs.init()
    set_caller(Caller(5, 6, 7))
    try:
        fs.unlink(b"/a")
        assert number_of(lambda: fs.rmdir(b"/a")) == errno.EEXIST
    finally:
        set_caller(Caller(0, 0, 0))
    operations = fs.operations
    fs.destroy()
    assert len(operations.threads) == 5
    assert len(set(operations.threads)) == 1
    assert operations.threads[0] != threading.get_ident()
    assert operations.context == (5, 6, 7)


SINGLE = """
import threading
from fuse import FuseOSError, Operations, fuse_get_context

class Single(Operations):
    def __init__(self):
        self.threads = [threading.get_ident()]

    def __call__(self, op, *args):
        self.threads.append(threading.get_ident())
        return super().__call__(op, *args)

    def unlink(self, path):
        self.context = fuse_get_context()

    def rmdir(self, path):
        raise FuseOSError(17)
"""
