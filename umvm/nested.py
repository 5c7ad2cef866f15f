"""`umvm run` in a VM: the process asks for a view of its own and becomes the command in it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from umvm import specs
from umvm.control import client
from umvm.errors import UmvmError


def run(
    command: Sequence[str],
    *,
    name: str | None,
    modules: Sequence[str],
    mounts: Sequence[str],
    root: str | None,
    binds: Sequence[str],
    bind_system: bool,
    kill_on_exit: bool,
    chdir: str | None,
    env: dict[str, str],
    identity: Mapping[str, str] | None = None,
    network: Mapping[str, str] | None = None,
) -> int:
    """Execute a command in a child view; returns only (its status) with `kill_on_exit`.

    **Errors** OSError: it can't be executed. UmvmError: modules, identities and networks belong to
    a whole VM; who is root already may ask to be it.
    """
    if network:
        raise UmvmError("in a VM a command gets another network by umvm stack")
    if identity is not None and (os.geteuid() != 0 or set(identity) - {"unknown"}):
        raise UmvmError("in a VM: umvm su, umvm sudo; owners are kept by the VM that is started")
    if modules:
        raise UmvmError("in a VM modules are loaded for all of it: umvm insmod")
    wanted: dict[str, Any] = {
        "name": name,
        "mounts": [specs.parse_mount(text) for text in mounts],
        "root": None if root is None else os.path.abspath(root),
        "binds": [specs.parse_bind(text) for text in binds],
        "bind_system": bind_system,
        "chdir": chdir,
        "cwd": os.getcwd(),
    }
    got = client.call(client.find_vm(None), "child", wanted)
    if got["chdir"] is not None:
        os.chdir(got["chdir"])
    environment = {**os.environ, **env, "UMVM_NAME": got["name"]}
    sys.stdout.flush()
    return (_supervise if kill_on_exit else _execute)(command, environment)


def _execute(command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Become the command. OSError, with its name, if that can't be."""
    from umvm.run import candidates

    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python itself ignores them
    found = errno.ENOENT
    for path in candidates(command[0], environment.get("PATH", os.defpath)):
        try:
            os.execve(path, list(command), environment)
        except OSError as error:
            if error.errno == errno.EACCES:
                found = errno.EACCES
            elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
                found = error.errno or found
                break
    raise OSError(found, os.strerror(found), command[0])


def _supervise(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run the command as a child, and end what it leaves; its exit status."""
    from core_accel import launch
    from umvm.guest.process import descendants
    from umvm.run import PR_SET_CHILD_SUBREAPER, exit_status

    launch.control(PR_SET_CHILD_SUBREAPER, 1)
    pid = os.fork()
    if pid == 0:
        try:
            _execute(command, environment)
        except OSError as error:
            print(f"umvm: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127 if error.errno == errno.ENOENT else 126)
    _, status = os.waitpid(pid, 0)
    while left := descendants([os.getpid()], frozenset())[1:]:
        for other in left:
            try:
                os.kill(other, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, 0)[0]:
                pass
        except ChildProcessError:
            pass
    return exit_status(status)
