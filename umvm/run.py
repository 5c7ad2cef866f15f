"""`umvm run` and `umvm exec`: processes, signals and exit statuses around a virtual machine.

    umvm run = supervisor ── init ── first guest, orphans

Init is a small C loop: the parent of the first guest and of orphans. It tells the supervisor when
the guest ends, stops the supervisor when the guest is stopped (so that the shell sees its job
stop), and ends the guests and cleans up should the supervisor be killed. The supervisor itself must
not be the parent: wait(2) would then take the stops of ptrace, which the engine's threads wait for.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from core_accel import launch
from core_accel.lazy import log_to, logger
from umvm import specs
from umvm.errors import UmvmError

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

log = logger(__name__)

PR_GET_SECCOMP, PR_SET_CHILD_SUBREAPER = 21, 36


def run(
    command: Sequence[str],
    *,
    name: str | None = None,
    modules: Sequence[str] = (),
    mounts: Sequence[str] = (),
    root: str | None = None,
    binds: Sequence[str] = (),
    bind_system: bool = False,
    kill_on_exit: bool = False,
    verbose: int = 0,
    chdir: str | None = None,
    env: dict[str, str] | None = None,
    log_file: str | None = None,
    engine: str = "auto",
    identity: Mapping[str, str] | None = None,
    network: dict[str, str] | None = None,
) -> int:
    """Run a command in a new VM; its exit status (128+signal). OSError: it can't be executed.

    `identity`: options of the module `ident`, which is then loaded.
    """
    if is_guest():
        from umvm import nested

        return nested.run(
            command, name=name, modules=modules, mounts=mounts, root=root, binds=binds,
            bind_system=bind_system, kill_on_exit=kill_on_exit, chdir=chdir, env=env or {},
            identity=identity, network=network,
        )  # fmt: skip
    _set_up_logging(verbose, log_file)
    ignored = _ignored_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    from umvm.control.protocol import socket_path
    from umvm.control.server import Server
    from umvm.control.verbs import dispatch
    from umvm.guest import roots
    from umvm.vm import VirtualMachine

    name = name or f"vm{os.getpid()}"
    path = socket_path(name)
    vm = VirtualMachine(name, choose_engine(engine))
    try:
        vm.init.clean_up([os.fsencode(path), vm.shadow.path])
        with Server(path, dispatch(vm)):
            if identity is not None:
                vm.manager.load("ident", identity)
            if network:
                vm.manager.load("net", network)
            for text in modules:
                spec, options = specs.parse_module(text)
                vm.manager.load(spec, options)
            for text in mounts:
                mount = specs.parse_mount(text)
                target = os.fsencode(os.path.abspath(mount.target))
                vm.mount(mount.fstype, mount.source, target, mount.options)
            space = roots.prepare(vm, root, [specs.parse_bind(text) for text in binds], bind_system)
            vm.spaces.main = space
            if root is not None:
                chdir = roots.first_directory(vm, space, chdir, os.getcwd())
            sys.stdout.flush()
            launched = _spawn(
                command, vm.guest_environment(str(path), env or {}), ignored, files, chdir, vm.init,
                vm.engine_name, vm.first,
            )  # fmt: skip
            vm.spaces.enter(launched.pid, space)
            vm.add_guests(launched.listener, launched.pid)
            threading.Thread(target=_pass_signals_on, args=(vm,), daemon=True).start()
            gc.freeze()
            gc.enable()
            error = launched.go()
            status = _wait(vm, kill_on_exit)
            if error:
                _refuse(command, chdir, error)
    finally:
        vm.close()
    return exit_status(status)


def choose_engine(wanted: str) -> str:
    """The engine to ask for where "notify", "agent" or "auto" is wanted.

    **Errors** UmvmError: there can be no agent here.
    """
    if wanted == "notify":
        return wanted
    from umvm.agent.service import available

    reason = available()
    if reason is not None and wanted == "agent":
        raise UmvmError(f"--engine agent: {reason}")
    if reason is not None:
        log.info("no agent: %s", reason)
    return wanted if reason is None else "notify"


def _wait(vm: VirtualMachine, kill_on_exit: bool) -> int:
    """Wait until all guests have ended; the first one's wait status."""
    status = 0
    while True:
        what, value = vm.init.wait()
        if what == "Z":
            break
        status = value
        if kill_on_exit:
            vm.shutdown()
    vm.ended.wait()
    return status


def _pass_signals_on(vm: VirtualMachine) -> None:
    """What somebody sends us is meant for the first guest; the terminal's it gets itself."""
    wanted = signal.valid_signals() - {signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP}
    while True:
        info = signal.sigwaitinfo(wanted)
        guest = vm.init.guest
        if info.si_code > 0 or info.si_pid == vm.init.pid or not guest:
            if info.si_signo == signal.SIGTERM:
                vm.shutdown()
            continue
        try:
            os.kill(guest, info.si_signo)
        except ProcessLookupError:
            pass


def _spawn(
    command: Sequence[str], env: dict[str, str], ignored: int, files: tuple[int, int],
    chdir: str | None, init: launch.Init | None, engine: str,
    first: Callable[[list[bytes]], list[bytes]] = list,
) -> launch.Launched:  # fmt: skip
    from umvm.syscalls import bpf, table

    agent = None
    if engine == "agent":
        from core_accel.agentarea import AGENT_BASE, AGENT_MASK

        agent = (AGENT_BASE, AGENT_MASK)

    argv = [os.fsencode(word) for word in command]
    return launch.spawn(
        bpf.program(table.ROWS, agent=agent),
        first(candidates(command[0], env.get("PATH", os.defpath))),
        argv,
        [os.fsencode(f"{key}={value}") for key, value in env.items()],
        ignored,
        files,
        os.fsencode(os.path.abspath(chdir)) if chdir else None,
        init,
    )


def candidates(program: str, path: str) -> list[bytes]:
    """Where execvp(3) would look for a program; the view decides which of them exists."""
    if "/" in program:
        return [os.fsencode(program)]
    return [os.fsencode(os.path.join(place or ".", program)) for place in path.split(":")]


def enter(name: str | None, command: Sequence[str]) -> int:
    """Run a command in a running VM, as a child of ours; its exit status."""
    from umvm import standin
    from umvm._version import __version__
    from umvm.control import client, protocol

    path = client.find_vm(name)
    info = client.call(path, "info")
    if info["version"] != __version__:
        raise UmvmError(f"the VM runs umvm {info['version']}, this is {__version__}")
    if is_guest():
        raise UmvmError("already inside a VM")
    launch.control(PR_SET_CHILD_SUBREAPER, 1)
    env = {**os.environ, **info["environment"], **standin.environment(os.environ)}
    ignored = _ignored_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    launched = _spawn(
        command, env, ignored, (0, 0), info.get("directory"), None,
        info.get("engine", "notify"),
    )  # fmt: skip
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    request = {"v": protocol.VERSION, "verb": "attach", "args": {"pid": launched.pid}}
    protocol.send(sock, request, [launched.listener])
    answer = protocol.receive(sock)
    if answer is None or not answer[0].get("ok"):
        os.kill(launched.pid, signal.SIGKILL)
        raise UmvmError("the VM refused the process")
    os.close(launched.listener)
    threading.Thread(target=_end_with_vm, args=(sock, launched.pid), daemon=True).start()
    error = launched.go()
    if error:
        os.waitpid(launched.pid, 0)
        _refuse(command, None, error)
    return exit_status(launch.watch(launched.pid))


def _end_with_vm(sock: socket.socket, pid: int) -> None:
    """Guests can't live on without their supervisor."""
    from umvm.guest.process import descendants

    try:
        while sock.recv(4096):
            pass
    except OSError:
        pass
    for guest in descendants([pid]):
        try:
            os.kill(guest, signal.SIGKILL)
        except ProcessLookupError:
            pass


def exit_status(status: int) -> int:
    """The shell's number for a wait status."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.waitstatus_to_exitcode(status)


def is_guest() -> bool:
    """Is this process in a VM? The variable may have been inherited, the filter tells."""
    if "UMVM_SOCKET" not in os.environ:
        return False
    return launch.control(PR_GET_SECCOMP) == 2


def _refuse(command: Sequence[str], chdir: str | None, error: int) -> NoReturn:
    if error < 0:
        raise OSError(-error, os.strerror(-error), chdir)
    raise OSError(error, os.strerror(error), command[0])


def _ignored_signals() -> int:
    """Bit s-1 for each signal s that our caller had ignored (nohup); Python itself ignores two."""
    own = {signal.SIGPIPE, signal.SIGXFSZ}
    return sum(
        1 << (number - 1)
        for number in signal.valid_signals()
        if number not in own and signal.getsignal(number) is signal.SIG_IGN
    )


def _set_up_logging(verbose: int, log_file: str | None) -> None:
    level = ("WARNING", "INFO", "DEBUG")[min(verbose, 2)]
    short = "umvm: %(levelname)s: %(message)s"
    long = "%(asctime)s %(levelname)s %(name)s %(message)s"
    log_to(level=level, filename=log_file, format=long if log_file else short)
