"""What the tests share: running umvm, running the same body natively and in a VM, finding leaks.

Nothing here is a fixture (those are in conftest.py) and nothing here imports the compiled modules.
"""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest

GUESTS = Path(__file__).parent / "guests"
MARKER = "UMVM_TEST"
"""An environment variable that every process of a test inherits: how its leftovers are found."""
CHOICES = ("UMVM_ENGINE", "UMVM_PATCH")
"""What chooses the engine of the VMs that the tests start, and how much of programs is patched."""
ANALYSER = "umvm.agent.analyse"
"""The process that patches programs may outlive its VM; what it uses is known at the end."""
UMVM = (sys.executable, "-m", "umvm")
PYTHON = (sys.executable, "-I", "-S", "-B")
"""Python for guests: starts fast and writes nothing beside its sources."""
GRACE = 10.0
"""Seconds within which a test's processes must be gone after it ended."""

Body: TypeAlias = str | Sequence[str] | Callable[[], Any]
"""Shell text, an argument vector, or a Python function without free names; its result is shown."""


class Result(NamedTuple):
    """What a finished command left; undecodable bytes are kept as surrogates."""

    stdout: str
    stderr: str
    status: int

    def ok(self) -> str:
        """The standard output, when the command succeeded."""
        assert self.status == 0, f"status {self.status}\n{self.stdout}\n{self.stderr}"
        return self.stdout


def argv_of(body: Body) -> list[str]:
    """Turn a body into an argument vector."""
    if isinstance(body, str):
        return ["/bin/sh", "-c", body]
    if not callable(body):
        return [str(argument) for argument in body]
    source = textwrap.dedent(inspect.getsource(body))
    source = source[source.index(f"def {body.__name__}(") :]  # decorators stay behind
    # "result" and not a bare expression, so that None is seen too
    return [*PYTHON, "-c", f"{source}\nprint('result', repr({body.__name__}()))\n"]


class Runner:
    """Starts the processes of one test and ends those that the test left."""

    def __init__(self, marker: str, runtime: Path, log: Path, cache: Path | None = None) -> None:
        """`cache`: the XDG_CACHE_HOME of what is started, with the patched programs of the agent."""
        self.marker, self.runtime, self.log = marker, runtime, log
        self._cache = cache or log.parent / ".cache"
        self._started: list[subprocess.Popen[bytes]] = []
        self.home = log.parent

    def environ(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a test's command: nothing of the user's settings reaches it."""
        foreign = ("UMVM_", "XDG_", "COV_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) or k in CHOICES}
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        return kept | {
            "PATH": path,
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CACHE_HOME": str(self._cache),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "PYTHONDONTWRITEBYTECODE": "1",
            MARKER: self.marker,
            **(env or {}),
        }

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own; it is killed with the test."""
        process = subprocess.Popen(
            list(argv), env=self.environ(env), start_new_session=True, **options
        )
        self._started.append(process)
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        timeout: float = 45,
    ) -> Result:
        """Run a command to its end. Its output is read from files, so that a process that it left
        in the background doesn't keep this waiting."""
        data = input.encode() if isinstance(input, str) else input
        with memory_file("in", data) as fd, memory_file("out") as out, memory_file("err") as err:
            process = self.start(argv, env=env, cwd=cwd, stdin=fd, stdout=out, stderr=err)
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                pytest.fail(
                    f"no end after {timeout} s: {shlex.join(argv)}\n"
                    f"{contents(out)}\n{contents(err)}\n{self.logged()}"
                )
            return Result(contents(out), contents(err), status)

    def umvm_argv(
        self, body: Body, mounts: Sequence[str], modules: Sequence[str], options: Sequence[str]
    ) -> list[str]:
        """`umvm run` with these mounts and modules; the supervisor logs to this test's file."""
        argv = [*UMVM, "run", "--log", str(self.log), *options]
        for module in modules:
            argv += ["-m", module]
        for mount in mounts:
            argv += ["--mount", mount]
        return [*argv, "--", *argv_of(body)]

    def umvm(
        self,
        body: Body,
        *,
        mounts: Sequence[str] = (),
        modules: Sequence[str] = (),
        options: Sequence[str] = (),
        **keywords: Any,
    ) -> Result:
        """Run a body in a new VM to its end. See `run` for the other arguments."""
        return self.run(self.umvm_argv(body, mounts, modules, options), **keywords)

    def start_umvm(
        self,
        body: Body,
        *,
        mounts: Sequence[str] = (),
        modules: Sequence[str] = (),
        options: Sequence[str] = (),
        **keywords: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a body in a new VM and return at once."""
        return self.start(self.umvm_argv(body, mounts, modules, options), **keywords)

    def command(self, *argv: str, **keywords: Any) -> Result:
        """Run another umvm command, for example `command("ls", "--json")`."""
        return self.run(self.command_argv(*argv), **keywords)

    def command_argv(self, *argv: str) -> list[str]:
        """The argument vector of another umvm command."""
        return [*UMVM, *argv]

    def logged(self) -> str:
        """What the supervisors of this test logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def close(self) -> list[str]:
        """End what is left and describe the leaks found: processes first, then files."""
        for process in self._started:
            if process.poll() is None:
                _kill(-process.pid)
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        left = wait_for_end(self.marker)
        for pid in left:
            _kill(pid)
        leaks = [f"process left: {pid} {name}" for pid, name in left.items()]
        wait_until(lambda: not leftovers(self.runtime), GRACE if not leaks else 1)
        leaks += [f"file left: {path}" for path in leftovers(self.runtime)]
        for path in self.runtime.iterdir():  # so that the next test starts afresh
            shutil.rmtree(path, ignore_errors=True)
        return leaks


@contextmanager
def memory_file(name: str, data: bytes = b"") -> Iterator[int]:
    """A descriptor of an anonymous file with `data`, at its start."""
    fd = os.memfd_create(f"test-{name}")
    try:
        os.pwrite(fd, data, 0)
        yield fd
    finally:
        os.close(fd)


def contents(fd: int) -> str:
    """The whole content of an open file."""
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="surrogateescape")


def wait_until(condition: Callable[[], object], timeout: float = 20) -> bool:
    """Wait for a condition; tells whether it came true."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# --- leaks ------------------------------------------------------------------------------------


def marked_processes(marker: str) -> dict[int, str]:
    """The living processes that carry a marker: number → command line."""
    wanted = f"{MARKER}={marker}".encode()
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if wanted not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                continue
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue  # another user's, or gone
        if pid != os.getpid() and ANALYSER.encode() not in line:
            found[pid] = line.decode(errors="replace").strip()
    return found


def analysers(cache: Path) -> list[int]:
    """The processes that write to a cache of patched programs."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if ANALYSER.encode() in line and os.fsencode(cache) in line:
            found.append(pid)
    return found


def wait_for_end(marker: str) -> dict[int, str]:
    """The processes that carry a marker and don't end by themselves."""
    wait_until(lambda: not marked_processes(marker), GRACE)
    return marked_processes(marker)


def leftovers(runtime: Path) -> list[str]:
    """Files in a runtime directory, apart from umvm's own two directories."""
    kept = {runtime / "umvm", runtime / f"umvm-{os.geteuid()}"}
    return sorted(str(path) for path in runtime.rglob("*") if path not in kept)


def make_runtime() -> Path:
    """An XDG_RUNTIME_DIR: its path is short, as socket addresses hold 107 bytes, and where it can
    be it lies on tmpfs and programs may run there, so that the VM keeps its files there too."""
    roomy = Path("/dev/shm")
    usable = os.access(roomy, os.W_OK) and not os.statvfs(roomy).f_flag & os.ST_NOEXEC
    return Path(tempfile.mkdtemp(prefix="uv", dir=roomy if usable else "/tmp"))


def open_descriptors() -> dict[int, str]:
    """This process's descriptors: number → what it is."""
    found = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the listing's own
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


# --- the host is the oracle ---------------------------------------------------------------------


class Place:
    """Where a body runs: an empty directory on the host, or one on a served file system in a VM."""

    def __init__(self, kind: str, runner: Runner, directory: Path, fstype: str = "memory") -> None:
        self.kind, self.fstype = kind, fstype
        self._runner = runner
        self.directory = directory
        directory.mkdir(parents=True)

    def run(self, body: Body, **keywords: Any) -> Result:
        """Run a body in a fresh directory `d`, which is its working directory.

        Its file system is empty otherwise. `modules` and `options` (of `umvm run`) are for the VM.
        """
        argv = ["/bin/sh", "-c", 'cd "$0" && mkdir d && cd d && exec "$@"', str(self.directory)]
        argv += argv_of(body)
        if self.kind == "native":
            keywords.pop("modules", None)
            keywords.pop("options", None)
            shutil.rmtree(self.directory / "d", ignore_errors=True)
            return self._runner.run(argv, **keywords)
        mount = f"{self.fstype}:none:{self.directory}".replace("\\", "\\\\")
        return self._runner.umvm(argv, mounts=[mount], **keywords)


def compare(native: Result, vm: Result, stderr: bool = False) -> None:
    """Assert that both runs gave the same output and status."""
    same = native.stdout == vm.stdout and native.status == vm.status
    if same and (not stderr or native.stderr == vm.stderr):
        return
    raise AssertionError(
        f"the VM differs from the host\n"
        f"--- host: status {native.status}\n{native.stdout}{native.stderr}\n"
        f"--- VM: status {vm.status}\n{vm.stdout}{vm.stderr}"
    )


# --- C guests -----------------------------------------------------------------------------------


class Compiler:
    """Compiles tests/guests/NAME.c, each variant once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._built: dict[tuple[str, bool, bool, tuple[str, ...]], Path] = {}

    def __call__(self, name: str, *flags: str, static: bool = False, musl: bool = False) -> Path:
        """The program of a guest; `flags` are more options of the compiler."""
        key = (name, static, musl, flags)
        if key not in self._built:
            self._built[key] = self._build(*key)
        return self._built[key]

    def _build(self, name: str, static: bool, musl: bool, flags: tuple[str, ...]) -> Path:
        compiler = "musl-gcc" if musl else "gcc"
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
        target = self._directory / f"{len(self._built)}-{name}"
        command = [compiler, "-O1", "-Wall", "-Wextra", "-pthread", "-o", str(target)]
        command += ["-static"] * static + [str(GUESTS / f"{name}.c"), *flags]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        return target


def readable_by_others(runner: Runner) -> None:
    """Skip where another user, which a guest of root's becomes, can't read this installation."""
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.geteuid() == 0 and runner.run([*other, *UMVM, "--version"]).status != 0:
        pytest.skip("others can't read this installation")
