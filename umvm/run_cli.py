"""The command line of `umvm run`: its options as a table, and a reader for them without click.

`umvm run` is started often, so that its start counts: click alone costs more than the interpreter.
The table is what click shows and checks (umvm/cli.py); `read` understands well-formed command lines
only and leaves everything else, errors and help included, to click.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from umvm.errors import CommandNotFound, NotExecutable, UmvmError, UsageError

FLAG, COUNT, ONE, MANY = "flag", "count", "one", "many"


class Option(NamedTuple):
    """One option of `umvm run`: its spellings, its key, how often it may come with what."""

    names: tuple[str, ...]
    key: str
    kind: str
    metavar: str
    help: str


OPTIONS = (
    Option(("--name",), "name", ONE, "NAME", "Name of the VM (default: chosen by umvm)."),
    Option(("-m", "--module"), "modules", MANY, "SPEC[,opt=val]", "Load a module first."),
    Option(("--mount",), "mounts", MANY, "TYPE:SOURCE:TARGET[:opts]", "Mount first."),
    Option(("--user",), "user", ONE, "USER[:GROUP]", "Be that user inside: names or numbers."),
    Option(("--caps",), "caps", ONE, "all|none|LIST", "Capabilities of CMD's user inside."),
    Option(("--root",), "root", ONE, "DIR", "CMD and its children see DIR as /."),
    Option(("--bind",), "binds", MANY, "SRC[:DST[:ro]]", "Show SRC of the host at DST."),
    Option(
        ("--bind-system",), "bind_system", FLAG, "", "Bind /dev, /proc, /sys, /tmp, resolv.conf…"
    ),
    Option(("--net",), "net", ONE, "KIND[:ARG][,opt=val]", "The network stack (the host's)."),
    Option(("--net-log",), "net_log", ONE, "FILE", "Log there what rules of --net have denied."),
    Option(("--ip",), "ip", ONE, "ADDR", "The VM's address, with --net fabric (next free one)."),
    Option(("--engine",), "engine", ONE, "notify|agent|auto", "How calls are caught (auto)."),
    Option(("--fakeroot",), "fakeroot", FLAG, "", "Be root, and remember owners and devices."),
    Option(("--load",), "load", ONE, "FILE", "--fakeroot: read owners from FILE first."),
    Option(("--save",), "save", ONE, "FILE", "--fakeroot: write owners to FILE at the end."),
    Option(("--owners",), "owners", ONE, "FILE.db", "--fakeroot: keep owners in a database."),
    Option(
        ("--unknown-is-real",),
        "unknown_is_real",
        FLAG,
        "",
        "--fakeroot: show the real owners of files that no guest changed.",
    ),
    Option(
        ("--lenient",),
        "lenient",
        FLAG,
        "",
        "--fakeroot: what means nothing in a VM seems to succeed.",
    ),
    Option(("--kill-on-exit",), "kill_on_exit", FLAG, "", "End all processes with the first one."),
    Option(("-C", "--chdir", "--cwd"), "chdir", ONE, "DIR", "Run CMD in DIR, after mounting."),
    Option(("-e", "--env"), "env", MANY, "NAME=VALUE", "Set a variable for CMD."),
    Option(("--config",), "config", ONE, "FILE", "Read settings from a TOML file."),
    Option(("--profile",), "profile", ONE, "NAME", "Read NAME.toml of your settings directory."),
    Option(("-v", "--verbose"), "verbose", COUNT, "", "Log more; twice: each claimed call."),
    Option(("--log",), "log", ONE, "FILE", "Log to FILE, not to standard error."),
)
_BY_NAME = {name: option for option in OPTIONS for name in option.names}
_EMPTY = {FLAG: False, COUNT: 0, ONE: None, MANY: ()}

ENGINES = ("notify", "agent", "auto")
SETTINGS = {
    "name": str,
    "modules": list,
    "mounts": list,
    "root": str,
    "binds": list,
    "kill_on_exit": bool,
    "env": dict,
    "engine": str,
    "user": str,
    "caps": str,
    "net": str,
    "ip": str,
}
"""The keys of a settings file and their types."""


def read(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Read the command line after `umvm run`; None: it is for click to judge."""
    values: dict[str, Any] = {option.key: _EMPTY[option.kind] for option in OPTIONS}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        word, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        option = _BY_NAME.get(word)
        if option is None:
            return None
        if option.kind in (FLAG, COUNT):
            if equals:
                return None
            values[option.key] += 1
            continue
        if not equals:
            if not rest:
                return None
            value = rest.pop(0)
        values[option.key] = (*values[option.key], value) if option.kind == MANY else value
    return values | {"command": tuple(rest)}


def run(
    command: Sequence[str],
    *,
    name: str | None,
    modules: Sequence[str],
    mounts: Sequence[str],
    kill_on_exit: bool,
    chdir: str | None,
    env: Sequence[str],
    config: str | None,
    profile: str | None,
    verbose: int,
    log: str | None,
    root: str | None = None,
    binds: Sequence[str] = (),
    bind_system: bool = False,
    engine: str | None = None,
    user: str | None = None,
    caps: str | None = None,
    fakeroot: bool = False,
    load: str | None = None,
    save: str | None = None,
    owners: str | None = None,
    unknown_is_real: bool = False,
    lenient: bool = False,
    net: str | None = None,
    ip: str | None = None,
    net_log: str | None = None,
) -> int:
    """Run a command in a new VM and return its exit status.

    **Errors** UsageError: an option's value. CommandNotFound, NotExecutable: the command.
    """
    from umvm import specs

    settings: Mapping[str, Any] = {}
    if config is not None and profile is not None:
        raise UsageError("--config and --profile exclude each other")
    if config is not None or profile is not None:
        from umvm import config as files

        settings = files.read(config if config is not None else files.profile(str(profile)))
    name = name or settings.get("name")
    engine = engine or settings.get("engine") or os.environ.get("UMVM_ENGINE") or "auto"
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}: expected {', '.join(ENGINES)}")
    all_modules = [*settings.get("modules", ()), *modules]
    user = settings.get("user") if user is None else user
    caps = settings.get("caps") if caps is None else caps
    all_mounts = [*settings.get("mounts", ()), *mounts]
    root = root or settings.get("root")
    all_binds = [*settings.get("binds", ()), *binds]
    for text in all_binds:
        specs.parse_bind(text)
    if bind_system and root is None:
        raise UsageError("--bind-system is for a root of its own (--root)")
    net, ip = net or settings.get("net"), ip or settings.get("ip")
    network: dict[str, str] = {}
    if net is not None:
        specs.parse_net(net)
        network = {"default": net} | ({"ip": ip} if ip is not None else {})
        if net_log is not None:
            network["log"] = os.path.abspath(net_log)
    elif net_log is not None:
        raise UsageError("--net-log needs --net")
    elif ip is not None:
        raise UsageError("--ip needs --net")
    if name is not None:
        specs.check_name(name)
    for text in all_modules:
        specs.parse_module(text)
    for text in all_mounts:
        specs.parse_mount(text)
    kept = {"load": load, "save": save, "owners": owners}
    identity = {key: os.path.abspath(name) for key, name in kept.items() if name is not None}
    identity |= {"unknown": "real"} if unknown_is_real else {}
    identity |= {"lenient": ""} if lenient else {}
    somebody = fakeroot or user is not None or caps is not None
    if identity and not somebody:
        option = {"unknown": "unknown-is-real"}.get(min(identity), min(identity))
        raise UsageError(f"--{option} needs --fakeroot")
    if user is not None or caps is not None:
        from umvm.become import module_of

        whole = "0" if fakeroot and user is None else user
        identity |= specs.parse_module(module_of(whole, caps)[0])[1]
        identity |= {"files": "0:0"} if fakeroot else {}
    variables = dict(settings.get("env", {})) | dict(_assignment(text) for text in env)
    argv = list(command) or [os.environ.get("SHELL") or "/bin/sh"]
    from umvm.run import run as run_vm

    try:
        return run_vm(
            argv,
            name=name,
            modules=all_modules,
            mounts=all_mounts,
            root=root,
            binds=all_binds,
            bind_system=bind_system,
            kill_on_exit=bool(kill_on_exit or settings.get("kill_on_exit", False)),
            verbose=verbose,
            chdir=chdir,
            env=variables,
            log_file=log,
            engine=engine,
            identity=identity if somebody else None,
            network=network,
        )
    except OSError as error:
        raise exec_error(argv[0], error) from error


def exec_error(program: str, error: OSError) -> UmvmError | OSError:
    """The shell's convention: 127 for a missing program, 126 for one that can't be run."""
    if error.filename != program:
        return error
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFound(f"{program}: command not found")
    if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EPERM, errno.EISDIR):
        return NotExecutable(f"{program}: {error.strerror}")
    return error


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or "\0" in text:
        raise UsageError(f"bad variable {text!r}: expected NAME=VALUE")
    return name, value
