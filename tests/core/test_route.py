"""Which calls are handed to the interpreter: core_accel/route.h, asked without a guest."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "core_accel"
AT_FDCWD = -100
OPENAT, STAT, READ, RENAME = 257, 4, 0, 82
FLAGS = ("-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function")


def compile_c(*arguments: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("route") / "probe.so"
    source = str(HERE / "route_probe.c")
    compile_c(*FLAGS, "-shared", "-fPIC", f"-I{SOURCES}", source, "-o", str(path))
    library = ctypes.CDLL(str(path))
    library.probe_new.restype = ctypes.c_void_p
    return library


class Router:
    """A router with the guest's memory, descriptors and directory being this process's own."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._router = ctypes.c_void_p(library.probe_new())

    def view(self, points: Sequence[tuple[bytes, int]]) -> None:
        names = (ctypes.c_char_p * len(points))(*(point for point, _ in points))
        ids = (ctypes.c_uint32 * len(points))(*(ident for _, ident in points))
        assert self._library.probe_view(self._router, names, ids, len(points)) == 0

    def shadow(self, prefix: bytes) -> None:
        assert self._library.probe_shadow(self._router, prefix) == 0

    def state(self, descriptors: int, virtual_cwd: int) -> None:
        self._library.probe_state(self._router, descriptors, virtual_cwd)

    def ask(
        self, args: Sequence[int | bytes | None], *, fd: int = -1, paths: Sequence[int] = (),
        dirfds: Sequence[int] = (), always: int = 0, hooked: int = 0, nr: int = OPENAT,
    ) -> bool:  # fmt: skip
        keep = [ctypes.create_string_buffer(a) if isinstance(a, bytes) else a for a in args]
        numbers = [
            ctypes.addressof(k) if isinstance(k, ctypes.Array) else (k or 0) & (1 << 64) - 1
            for k in keep
        ]
        path = [*paths, -1, -1][:2]
        dirfd = [*dirfds, -1, -1][:2]
        kind = (ctypes.c_byte * 7)(always, hooked, fd, *path, *dirfd)
        registers = (ctypes.c_uint64 * 6)(*numbers)
        answer = self._library.probe_ask(
            self._router, kind, threading.get_native_id(), nr, registers
        )
        assert answer in (0, 1)
        return bool(answer)

    def path(self, path: bytes | int | None, dirfd: int | None = None) -> bool:
        """A stat or (with dirfd) openat."""
        if dirfd is None:
            return self.ask([path], paths=[0], nr=STAT)
        return self.ask([dirfd, path], paths=[1], dirfds=[0])

    def close(self) -> None:
        self._library.probe_free(self._router)


@pytest.fixture
def router(library: ctypes.CDLL) -> Iterator[Router]:
    router = Router(library)
    yield router
    router.close()


@pytest.fixture
def busy(router: Router, tmp_path: Path) -> Router:
    """With a mount on tmp_path/m, host directories and links beside it, and a shadow directory."""
    for name in ("m", "d", "shadow", "shadow/o", "shadow/c"):
        (tmp_path / name).mkdir()
    (tmp_path / "to_m").symlink_to("d/../m")
    (tmp_path / "d" / "f").touch()
    (tmp_path / "d" / "self").symlink_to("/proc/self/fd/0")
    router.view([(b"/", 0), (b"/proc", 1), (os.fsencode(tmp_path / "m"), 2)])
    router.shadow(os.fsencode(tmp_path / "shadow") + b"/")
    router.state(1, 1)
    return router


def test_nothing_served(router: Router) -> None:
    """Everything runs, unless it is hooked or always ours."""
    router.view([(b"/", 0), (b"/proc", 1)])
    assert not router.path(b"/proc/self/fd/0")
    assert not router.ask([0], fd=0, nr=READ)
    assert not router.ask([], always=2)
    assert router.ask([], always=1)
    assert router.ask([], hooked=1)


def test_paths(busy: Router, tmp_path: Path) -> None:
    top = os.fsencode(tmp_path)
    ours = [b"/m", b"/m/", b"/m/x", b"/m/..", b"/m/../d/f", b"/to_m", b"/to_m/x", b"/d/../m/x"]
    hosts = [b"", b"/", b"/d", b"/d/f", b"/d/f/", b"/none", b"/none/m", b"/d/../mm", b"/d/f/m"]
    assert [p for p in ours if not busy.path(top + p)] == []
    assert [p for p in hosts if busy.path(top + p)] == []
    assert busy.ask([top + b"/d/f", top + b"/m/x"], paths=[0, 1], nr=RENAME)
    assert busy.ask([top + b"/m/x", top + b"/d/f"], paths=[0, 1], nr=RENAME)
    assert not busy.ask([top + b"/d/f", top + b"/d/g"], paths=[0, 1], nr=RENAME)
    assert busy.ask([], always=2)


def test_bad_pointers_are_the_kernels(busy: Router) -> None:
    assert not busy.path(1)
    assert not busy.path(None)
    assert not busy.path((1 << 63) + 5)
    assert not busy.path(b"x" * 4096)
    assert not busy.path(b"")


def test_relative_to_host_directories(
    busy: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "d")
    assert busy.path(b"../m/x")
    assert busy.path(b"../m", AT_FDCWD)
    assert not busy.path(b"f", AT_FDCWD)
    assert not busy.path(b"../d/f")
    fd = os.open(tmp_path, os.O_PATH)
    try:
        assert busy.path(b"m/x", fd)
        assert busy.path(b"to_m/x", fd)
        assert not busy.path(b"d/f", fd)
        assert not busy.path(b"", fd)
        assert not busy.path(os.fsencode(tmp_path) + b"/d", fd)
    finally:
        os.close(fd)
    assert not busy.path(b"m", fd)  # EBADF is the kernel's
    assert not busy.path(b"m", -1)


def test_removed_host_directory(
    busy: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names in it are the kernel's; absolute ones aren't concerned."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert not busy.path(b"../m")
    assert busy.path(os.fsencode(tmp_path) + b"/m")


def test_descriptors_of_ours(busy: Router, tmp_path: Path) -> None:
    """A descriptor whose link leads into the shadow directory, though the file is unlinked."""
    ours = os.open(tmp_path / "shadow" / "o" / "17", os.O_CREAT | os.O_RDWR)
    os.unlink(tmp_path / "shadow" / "o" / "17")
    other = os.open(tmp_path / "d" / "f", os.O_RDONLY)
    try:
        assert busy.ask([ours], fd=0, nr=READ)
        assert busy.ask([ours | 0xABCD << 32], fd=0, nr=READ)  # the kernel takes 32 bits
        assert not busy.ask([other], fd=0, nr=READ)
        assert not busy.ask([0xFFFFFFFF], fd=0)  # mmap's -1
        assert not busy.ask([AT_FDCWD], fd=0)
        assert not busy.ask([123456], fd=0)
        for path in (b"x", b"", None, b"../x"):  # None: utimensat(fd, NULL), statx
            assert busy.path(path, ours)
        assert not busy.path(b"", other)
        assert not busy.path(os.fsencode(tmp_path) + b"/d", ours)
        busy.state(0, 1)  # no descriptor of ours can be there: not looked at
        assert not busy.ask([ours], fd=0, nr=READ)
    finally:
        os.close(ours)
        os.close(other)


def test_working_directory_of_ours(
    busy: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "shadow" / "c")
    for path in (b"x", b".", b"..", b"../../d/f"):
        assert busy.path(path)
        assert busy.path(path, AT_FDCWD)
    assert busy.path(b"", AT_FDCWD)  # AT_EMPTY_PATH
    assert not busy.path(b"/usr")
    busy.view([(b"/", 0), (b"/proc", 1)])  # unmounted lazily
    assert busy.path(b"x")
    (tmp_path / "shadow" / "c").rmdir()
    assert busy.path(b"x")


PROC_OURS = """
    self/fd/0 self/cwd self/cwd/x self/root self/exe self/mounts self/mountinfo self/maps
    self/../self/cwd thread-self thread-self/fd/0 mounts 1/fd/0 1/task/1/cwd self/task/1/fd/3
    self/fd/../exe self/map_files/0-1 self/fdinfo/0 1/cwd/..
"""
PROC_HOSTS = """
    self stat cpuinfo meminfo sys/kernel/ostype self/stat self/status 1/stat self/fd self/fd/
    self/task self/task/1 self/task/1/stat self/ns/net net/tcp self/nothing nothing 1/task/1/fd
    self/fdx mountsx
"""


@pytest.mark.parametrize("name", PROC_OURS.split())
def test_proc_that_shows_the_view(busy: Router, name: str) -> None:
    assert busy.path(f"/proc/{name}".encode())


@pytest.mark.parametrize("name", PROC_HOSTS.split())
def test_proc_that_does_not(busy: Router, name: str) -> None:
    assert not busy.path(f"/proc/{name}".encode())


def test_proc_by_descriptor_and_link(busy: Router, tmp_path: Path) -> None:
    fd = os.open("/proc/self", os.O_PATH)
    try:
        assert busy.path(b"exe", fd)
        assert busy.path(b"fd/0", fd)
        assert not busy.path(b"stat", fd)
    finally:
        os.close(fd)
    assert busy.path(os.fsencode(tmp_path / "d" / "self"))


def test_views_are_replaced_while_walks_run(busy: Router, tmp_path: Path) -> None:
    """No walk sees a table that was freed, and each sees one of the views whole."""
    top = os.fsencode(tmp_path)
    answers: set[bool] = set()
    wrong: list[bytes] = []
    stop = threading.Event()

    def walk() -> None:
        while not stop.is_set():
            answers.add(busy.path(top + b"/d/f"))
            if not busy.path(top + b"/m/x"):
                wrong.append(b"/m/x")

    threads = [threading.Thread(target=walk) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(300):
        points = [(b"/", 0), (b"/proc", 1), (top + b"/m", 2), (top + b"/d", 3)]
        busy.view(points[: 3 + i % 2])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert answers <= {True, False} and answers


def test_pathwalk_is_freestanding(tmp_path: Path) -> None:
    """pathwalk.h compiles for the agent: no libc but the four functions gcc itself calls."""
    source = tmp_path / "walk.c"
    source.write_text(
        '#include "pathwalk.h"\n'
        "int walk(struct umvm_view *v, struct umvm_walk *w, const char *p, uint32_t n)\n"
        '{ return umvm_walk(v, w, "/", 1, p, n, 0); }\n'
        "void *make(void *m) { return umvm_view_make(m, 0, 0, 0, 0, 0, 0, 0); }\n"
    )
    made = tmp_path / "walk.so"
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-stack-protector")
    compile_c(*flags, "-nostdlib", "-fPIC", "-c", f"-I{SOURCES}", str(source), "-o", str(made))
    names = subprocess.run(["nm", "-u", str(made)], capture_output=True, text=True, check=True)
    needed = {line.split()[-1] for line in names.stdout.splitlines()}
    assert needed <= {"memcpy", "memcmp", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_"}


def test_random_walks_stay_in_their_memory(tmp_path: Path) -> None:
    """Random views, paths and answers, with the compiler's sanitizers where it has them."""
    made = str(tmp_path / "fuzz")
    arguments = [*FLAGS, "-g", f"-I{SOURCES}", str(HERE / "pathwalk_fuzz.c"), "-o", made]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    try:
        compile_c(*sanitizers, *arguments)
    except AssertionError:
        compile_c(*arguments)
    ran = subprocess.run([made, "1", "20000"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, failed = map(int, ran.stdout.split())
    assert found > 2000 and failed > 2000
