"""`umvm su`, `umvm sudo` and `umvm id`: who a guest is, and how it becomes somebody else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from core_accel import launch
from umvm import capabilities, run_cli, users
from umvm.errors import NotFound, UmvmError

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

_PATHS = (
    "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)
"""The PATH of a login: of users, and of root."""
_PR_GET_SECUREBITS, _PR_GET_NO_NEW_PRIVS = 27, 39


# --- in the guest ------------------------------------------------------------------------------


def _become(account: users.Account) -> None:
    """Have the VM make this process that user's. **Errors** NotFound: it is in no VM."""
    from umvm.control import client
    from umvm.run import is_guest

    socket = os.environ.get(client.ENV)
    if socket is None or not is_guest():
        raise NotFound("this isn't inside a VM")
    wanted = {"pid": os.getpid(), "uid": account.uid, "gid": account.gid}
    client.call(socket, "become", {**wanted, "groups": list(account.groups)})


def _execute(argv: Sequence[str], env: dict[str, str]) -> NoReturn:
    sys.stdout.flush()
    try:
        os.execvpe(argv[0], list(argv), env)
    except OSError as error:
        error.filename = argv[0]
        raise run_cli.exec_error(argv[0], error) from error


def su(user: str, command: str | None, login: bool, arguments: Sequence[str]) -> NoReturn:
    """Become a user and execute its shell, which runs `command` if there is one."""
    account = users.account(user)
    env = dict(os.environ)
    if login:
        env = {name: env[name] for name in ("TERM", "UMVM_SOCKET", "UMVM_NAME") if name in env}
        env["PATH"] = _PATHS[account.uid == 0]
    env |= {"HOME": account.home, "SHELL": account.shell}
    if login or account.uid != 0:
        env |= {"USER": account.name, "LOGNAME": account.name}
    _become(account)
    if login:
        try:
            os.chdir(account.home)
        except OSError as error:
            print(f"umvm: {account.home}: {error.strerror}", file=sys.stderr)
    shell = account.shell if account.shell not in _NO_SHELLS else "/bin/sh"
    words = [shell, *(("-l",) if login else ()), *(("-c", command) if command is not None else ())]
    _execute([*words, *arguments], env)


_NO_SHELLS = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false")
"""Shells of users that nobody logs in as."""


def sudo(user: str, group: str | None, command: Sequence[str]) -> NoReturn:
    """Execute a command as another user; its environment says who asked."""
    account = users.account(user)
    if group is not None:
        account = account._replace(gid=users.gid_of(group))
    asked = {
        "SUDO_UID": str(os.getuid()),
        "SUDO_GID": str(os.getgid()),
        "SUDO_USER": users.user_name(os.getuid()) or str(os.getuid()),
        "SUDO_COMMAND": " ".join(command),
    }
    names = {"HOME": account.home, "USER": account.name, "LOGNAME": account.name}
    _become(account)
    _execute(command, {**os.environ, **names, **asked})


def describe() -> dict[str, Any]:
    """Who this process is, as the calls tell it: in a VM, or on the host."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    sets = {
        name: capabilities.show(int(fields[f"Cap{short}"], 16))
        for name, short in (
            ("effective", "Eff"), ("permitted", "Prm"), ("inheritable", "Inh"),
            ("bounding", "Bnd"), ("ambient", "Amb"),
        )
    }  # fmt: skip
    return {
        "uid": list(os.getresuid()),
        "gid": list(os.getresgid()),
        "groups": os.getgroups(),
        "capabilities": sets,
        "securebits": launch.control(_PR_GET_SECUREBITS),
        "no_new_privs": bool(launch.control(_PR_GET_NO_NEW_PRIVS)),
        "vm": os.environ.get("UMVM_NAME"),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The text of `umvm id`: as id(1) has it, then capabilities."""
    (ruid, euid, _), (rgid, egid, _) = found["uid"], found["gid"]
    words = [f"uid={_user(ruid)}", f"gid={_group(rgid)}"]
    if euid != ruid:
        words.append(f"euid={_user(euid)}")
    if egid != rgid:
        words.append(f"egid={_group(egid)}")
    groups = found["groups"] or [egid]
    words.append("groups=" + ",".join(_group(gid) for gid in groups))
    rows = [f"{name:<12} {value}" for name, value in found["capabilities"].items()]
    bits = f"securebits {found['securebits']:#x}, no_new_privs {int(found['no_new_privs'])}"
    return [" ".join(words), *rows, bits]


def _user(uid: int) -> str:
    name = users.user_name(uid)
    return f"{uid}({name})" if name else str(uid)


def _group(gid: int) -> str:
    name = users.group_name(gid)
    return f"{gid}({name})" if name else str(gid)


# --- in the supervisor -------------------------------------------------------------------------


def grant(vm: VirtualMachine, pid: int, uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Give a guest process the credentials of a user's first process.

    Everybody in a VM may become anybody: the VM is its user's. What the identity's first process
    lacks in its bounding set nobody gets. **Errors** UmvmError: it is no guest.
    """
    from umvm.interfaces.identity import login

    if pid not in vm.guest_pids():
        raise UmvmError(f"process {pid} is not in this VM")
    if vm.identity is None:
        ids = {"uid": str(os.getuid()), "gid": str(os.getgid())}
        names = ":".join(map(str, os.getgroups()))
        vm.manager.load("ident", {**ids, "groups": names})
    assert vm.identity is not None
    bounding = vm.identity.first().bounding
    new = login(uid, gid, groups)
    new = new._replace(
        permitted=new.permitted & bounding, effective=new.effective & bounding, bounding=bounding
    )
    vm.creds.change(pid, new)
    vm.procs.forget(pid)


def module_of(user: str | None, caps: str | None) -> list[str]:
    """The module, with options, for `umvm run --user` and `--caps`. **Errors** UsageError."""
    from umvm.errors import UsageError

    if user is None and caps is None:
        return []
    if user is None:
        uid, gid, groups = os.getuid(), os.getgid(), tuple(os.getgroups())
    else:
        account = users.account(user)
        uid, gid, groups = account.uid, account.gid, account.groups
    words = ["ident", f"uid={uid}", f"gid={gid}", "groups=" + ":".join(map(str, groups))]
    if caps is not None:
        try:
            bits = capabilities.read(caps)
            words.append(f"caps={bits:#x}" if bits else "caps=none")
        except ValueError as error:
            raise UsageError(f"--caps: {error}") from None
    return [",".join(words)]
