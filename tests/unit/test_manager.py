"""The module manager, with modules from files and a stand-in for the VM."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from umvm.errors import Busy, Exists, NotFound, UmvmError
from umvm.manager import ModuleManager


class Vm:
    """Keeps what the manager tells it; mounts are those a test writes down."""

    def __init__(self) -> None:
        self.hooks: dict[str, list[Callable[..., Any]]] = {}
        self.mounted: list[dict[str, Any]] = []
        self.seen: list[str] = []

    def commit_hooks(
        self, hooks: dict[str, list[Callable[..., Any]]], identity: object, events: Iterable[str]
    ) -> None:
        self.hooks = hooks

    def mounts_of(self, module: str) -> int:
        return sum(mount["module"] == module for mount in self.mounted)

    def mounts(self) -> list[dict[str, Any]]:
        return self.mounted

    def umount(self, target: bytes, force: bool, lazy: bool) -> None:
        self.seen.append(f"umount {target.decode()} {force} {lazy}")
        self.mounted = [m for m in self.mounted if m["target"].encode() != target]


@pytest.fixture
def vm() -> Vm:
    return Vm()


@pytest.fixture
def manager(vm: Vm) -> ModuleManager:
    return ModuleManager(vm)


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., str]:
    def write(text: str, name: str = "mod") -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return str(path)

    return write


BASIC = '''"""A module for tests.

More text."""
from umvm import FsType, SyscallClass, hookimpl

def factory(source, options):
    return ("fs", VERSION, source, options)

def answer(request):
    return VERSION

@hookimpl
def umvm_start(vm, options):
    vm.seen.append(f"start {VERSION} {options}")
    return [FsType("testfs", factory), SyscallClass(("uname", "openat"), answer)]

@hookimpl
def umvm_stop(vm):
    vm.seen.append(f"stop {VERSION}")
'''


def basic(version: int) -> str:
    return BASIC.replace("VERSION", str(version))


def made(manager: ModuleManager, source: str) -> tuple[str, Any]:
    """Which module makes the file system, and what it makes."""
    name, factory = manager.filesystem("testfs")
    return name, factory(source, {})


def test_load_and_unload(vm: Vm, manager: ModuleManager, module: Callable[..., str]) -> None:
    info = manager.load(module(basic(1)), {"a": "b"})
    assert info._asdict() == {
        "name": "mod",
        "state": "live",
        "uses": 0,
        "permanent": False,
        "filesystems": ("testfs",),
        "doc": "A module for tests.",
    }
    assert manager.list() == [info]
    assert made(manager, "src") == ("mod", ("fs", 1, "src", {}))
    assert sorted(vm.hooks) == ["openat", "uname"]
    manager.unload("mod")
    assert vm.seen == ["start 1 {'a': 'b'}", "stop 1"]
    assert (manager.list(), vm.hooks, manager.filesystems) == ([], {}, {})
    manager.load(module(basic(2)))  # and again, with other code
    assert made(manager, "") == ("mod", ("fs", 2, "", {}))


def test_what_is_not_there(manager: ModuleManager, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no module file"):
        manager.load(str(tmp_path / "none.py"))
    with pytest.raises(NotFound, match="no module named 'nonesuch'"):
        manager.load("nonesuch")
    for call in (manager.unload, manager.reload):
        with pytest.raises(NotFound, match="not loaded"):
            call("nonesuch")
    with pytest.raises(NotFound, match="unknown file system type"):
        manager.filesystem("nonesuchfs")
    assert manager.list() == []


def test_loaded_twice(manager: ModuleManager, module: Callable[..., str]) -> None:
    path = module(basic(1))
    manager.load(path)
    with pytest.raises(Exists, match="already loaded"):
        manager.load(path)
    assert len(manager.list()) == 1


def test_permanent(manager: ModuleManager, module: Callable[..., str]) -> None:
    assert manager.load(module(basic(1)), permanent=True).permanent
    for force in (False, True):
        with pytest.raises(Busy, match="permanent"):
            manager.unload("mod", force)
    assert manager.reload("mod").permanent


def test_busy_and_force(vm: Vm, manager: ModuleManager, module: Callable[..., str]) -> None:
    manager.load(module(basic(1)))
    vm.mounted = [{"module": "mod", "target": "/a"}, {"module": "mod", "target": "/b"}]
    with pytest.raises(Busy, match="in use by 2 mounts"):
        manager.unload("mod")
    assert manager.list()[0].uses == 2 and "uname" in vm.hooks
    manager.unload("mod", force=True)
    assert vm.seen[1:] == ["umount /b True False", "umount /a True False", "stop 1"]


def test_newest_is_asked_first(vm: Vm, manager: ModuleManager, module: Callable[..., str]) -> None:
    manager.load(module(basic(1), "one"))
    manager.load(module(basic(2), "two"))
    assert [hook(None) for hook in vm.hooks["uname"]] == [2, 1]
    assert manager.filesystem("testfs")[0] == "two"
    manager.unload("two")
    assert [hook(None) for hook in vm.hooks["uname"]] == [1]
    assert manager.filesystem("testfs")[0] == "one"


@pytest.mark.parametrize("by", ["name", "file"])
def test_reload(vm: Vm, manager: ModuleManager, module: Callable[..., str], by: str) -> None:
    path = module(basic(1))
    manager.load(path, {"o": ""})
    module(basic(2))
    manager.reload("mod" if by == "name" else path)
    assert vm.seen == ["start 1 {'o': ''}", "start 2 {'o': ''}", "stop 1"]
    assert [hook(None) for hook in vm.hooks["uname"]] == [2]
    manager.unload("mod")
    assert vm.seen[-1] == "stop 2"


@pytest.mark.parametrize(
    "text",
    [
        "def f(:\n",
        "raise ValueError('x')\n",
        "raise SystemExit(3)\n",
        "def umvm_start(vm, options):\n    raise ValueError('x')\n",
        "def umvm_start(vm, options):\n    return ['no route']\n",
        "def umvm_start(machine):\n    return []\n",
        "def umvm_sart(vm, options):\n    return []\n",
        "from umvm import SyscallClass\ndef umvm_start(vm, options):\n"
        "    return [SyscallClass(('no_such_call',), print)]\n",
    ],
)
def test_a_broken_module_changes_nothing(
    vm: Vm, manager: ModuleManager, module: Callable[..., str], text: str
) -> None:
    manager.load(module(basic(1)))
    before = dict(vm.hooks)
    with pytest.raises(UmvmError, match="broken"):
        manager.load(module(text, "broken"))
    assert [info.name for info in manager.list()] == ["mod"]
    module(text)
    with pytest.raises(UmvmError):
        manager.reload("mod")
    assert vm.hooks == before
    assert [(info.name, info.state) for info in manager.list()] == [("mod", "live")]
    module(basic(3))
    manager.reload("mod")
    assert [hook(None) for hook in vm.hooks["uname"]] == [3]


def test_errors_of_the_module_are_kept_short(
    manager: ModuleManager, module: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UmvmError, match=r"^module mod: ValueError: the reason$"):
        manager.load(module("def umvm_start():\n    raise ValueError('the reason')\n"))
    assert "Traceback" in caplog.text
    caplog.clear()
    with pytest.raises(UmvmError, match="Permission denied"):
        manager.load(
            module("def umvm_start():\n    raise PermissionError(13, 'Permission denied')\n")
        )
    assert caplog.text == ""


def test_failing_stop_is_logged(
    vm: Vm, manager: ModuleManager, module: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    manager.load(module("def umvm_stop():\n    raise ValueError('late')\n"))
    manager.unload("mod")
    assert "failed in umvm_stop" in caplog.text and "late" in caplog.text
    assert manager.list() == []


def test_a_module_that_never_starts_holds_nobody_up(
    vm: Vm, manager: ModuleManager, module: Callable[..., str]
) -> None:
    go = threading.Event()
    entered = threading.Event()
    vm.go, vm.entered = go, entered  # type: ignore[attr-defined]
    path = module("def umvm_start(vm):\n    vm.entered.set()\n    vm.go.wait(30)\n", "slow")
    thread = threading.Thread(target=manager.load, args=(path,))
    thread.start()
    try:
        assert entered.wait(30)
        assert [(info.name, info.state) for info in manager.list()] == [("slow", "loading")]
        with pytest.raises(Exists, match="already loading"):
            manager.load(path)
        with pytest.raises(Busy, match="is loading"):
            manager.unload("slow")
        manager.load(module(basic(1)))
        assert manager.filesystem("testfs")[0] == "mod"
    finally:
        go.set()
        thread.join()
    assert [info.state for info in manager.list()] == ["live", "live"]


def test_process_events(
    vm: Vm, manager: ModuleManager, module: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    assert not manager.wants_events()
    manager.load(
        module(
            "def umvm_process_started(vm, process, parent):\n"
            "    vm.seen.append(f'start {process} {parent}')\n"
            "def umvm_process_exec(vm, process):\n    raise ValueError('in exec')\n"
            "def umvm_process_exited(vm, process, status):\n"
            "    vm.seen.append(f'exit {process} {status}')\n"
        )
    )
    assert manager.wants_events()
    manager.process_started(7, None)
    manager.process_exec(7)
    manager.process_exited(7, 0)
    assert vm.seen == ["start 7 None", "exit 7 0"]
    assert "in exec" in caplog.text
    manager.unload("mod")
    assert not manager.wants_events()
    manager.process_started(8, 7)
    assert len(vm.seen) == 2


def test_close_stops_newest_first(
    vm: Vm, manager: ModuleManager, module: Callable[..., str]
) -> None:
    manager.load(module(basic(1), "one"), permanent=True)
    manager.load(module(basic(2), "two"))
    manager.close()
    assert vm.seen[2:] == ["stop 2", "stop 1"]
    assert (manager.list(), vm.hooks) == ([], {})
