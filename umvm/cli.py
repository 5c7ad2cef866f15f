"""The `umvm` command, but for the quick start of `umvm run` (umvm/__main__.py, umvm/run_cli.py)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from umvm import run_cli
from umvm.__main__ import PROGRAM, complain, guarded
from umvm._version import __version__
from umvm.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])
_COMPLETE = "_UMVM_COMPLETE"
_PASS_ON = {"allow_interspersed_args": False}  # options after CMD are CMD's

EXIT_STATUS = (
    ("0", "success; of `run` and `exec`: that of CMD"),
    ("1", "a failure that has no number of its own"),
    ("2", "a malformed command line"),
    ("3", "a VM, module, mount or file that doesn't exist"),
    ("other", "an errno: 13 not allowed, 16 in use, 17 exists already, ..."),
    ("126", "`run`, `exec`: CMD can't be executed"),
    ("127", "`run`, `exec`: CMD doesn't exist"),
    ("128+N", "`run`, `exec`: signal N ended CMD"),
)
_EPILOG = "\b\nExit status:\n" + "\n".join(
    f"  {number:<6} {meaning.replace('`', '')}" for number, meaning in EXIT_STATUS
)


class _Group(click.Group):
    """Our commands, then those of installed modules (hook umvm_commands)."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        from umvm.plugins import installed_commands

        offered: list[click.Command] = installed_commands()
        return next((command for command in offered if command.name == cmd_name), None)


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run programs in a partial virtual machine: a view of the system of their own."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


_vm_option: Callable[[Function], Function] = click.option(
    "--vm",
    "vm_name",
    metavar="VM",
    help="Name, or pid of the supervisor or a guest (default: the VM you are in, or the only one).",
)
_json_option: Callable[[Function], Function] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)


# --- running ----------------------------------------------------------------------------------


def _run_options(function: Function) -> Function:
    """Give a command the options of run_cli.OPTIONS."""
    for option in reversed(run_cli.OPTIONS):
        kinds: dict[str, dict[str, Any]] = {
            run_cli.FLAG: {"is_flag": True},
            run_cli.COUNT: {"count": True},
            run_cli.ONE: {"metavar": option.metavar},
            run_cli.MANY: {"metavar": option.metavar, "multiple": True},
        }
        more = kinds[option.kind]
        function = click.option(*option.names, option.key, help=option.help, **more)(function)
    return function


@cli.command(context_settings=_PASS_ON)
@_run_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[CMD...]")
def run(**values: Any) -> int:
    """Run CMD in a new VM and exit with its status; without CMD, your shell."""
    return run_cli.run(**values)


@cli.command(context_settings=_PASS_ON | {"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS] [--] [CMD...]")
def fakeroot(arguments: tuple[str, ...]) -> int:
    """Run CMD as root, with the options of fakeroot(1); also installed as umvm-fakeroot.

    `umvm fakeroot -h` lists them.
    """
    from umvm import fakeroot_cli

    return fakeroot_cli.run(arguments)


@cli.command(context_settings=_PASS_ON | {"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS] [CMD...]")
def proot(arguments: tuple[str, ...]) -> int:
    """Run CMD with another root, with the options of proot(1); also installed as umvm-proot.

    `umvm proot -h` lists them.
    """
    from umvm import proot_cli

    return proot_cli.run(arguments)


@cli.command("exec", context_settings=_PASS_ON)
@click.argument("vm_name", metavar="VM")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD...")
def exec_(vm_name: str, command: tuple[str, ...]) -> int:
    """Run CMD inside the running VM and exit with its status.

    VM is its name, or the pid of its supervisor or of a guest.
    """
    from umvm.run import enter

    try:
        return enter(vm_name, list(command))
    except OSError as error:
        raise run_cli.exec_error(command[0], error) from error


@cli.command("ls")
@_json_option
def ls_(as_json: bool) -> None:
    """List the running VMs."""
    from umvm.control import client

    rows = [{"name": vm.name, "pid": vm.pid} for vm in client.list_vms()]
    show_rows(rows, ("name", "pid"), as_json)


@cli.command()
@click.argument("vm_name", metavar="VM")
def kill(vm_name: str) -> None:
    """Shut a VM down with all its processes."""
    _call(vm_name, "shutdown")


# --- identity ---------------------------------------------------------------------------------


@cli.command(context_settings=_PASS_ON)
@click.option("-c", "--command", metavar="CMD", help="A command for the user's shell.")
@click.option("-l", "--login", is_flag=True, help="Start as at a login: environment, directory.")
@click.argument("user", default="root")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARG...]")
def su(command: str | None, login: bool, user: str, arguments: tuple[str, ...]) -> None:
    """In a VM, become USER (default: root) and execute its shell, without a password."""
    from umvm import become

    become.su(user, command, login, arguments)


@cli.command(context_settings=_PASS_ON)
@click.option("-u", "--user", default="root", help="Name, or number.", show_default=True)
@click.option("-g", "--group", metavar="GROUP", help="Another group than the user's own.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD...")
def sudo(user: str, group: str | None, command: tuple[str, ...]) -> None:
    """In a VM, execute CMD as another user."""
    from umvm import become

    become.sudo(user, group, command)


@cli.command("id")
@_json_option
def id_(as_json: bool) -> None:
    """Print who you are here, with capabilities."""
    from umvm import become

    found = become.describe()
    if as_json:
        import json

        click.echo(json.dumps(found, indent=2))
        return
    click.echo("\n".join(become.lines(found)))


# --- modules ----------------------------------------------------------------------------------


@cli.command()
@click.option("-p", "--permanent", is_flag=True, help="The module can't be removed.")
@_vm_option
@click.argument("spec")
@click.argument("options", nargs=-1, metavar="[opt=val]...")
def insmod(permanent: bool, vm_name: str | None, spec: str, options: tuple[str, ...]) -> None:
    """Load module SPEC: an installed module's name, or a .py file."""
    from umvm import specs

    settings: dict[str, str] = {}
    for text in options:
        settings |= specs.parse_options(text)
    _call(
        vm_name,
        "insmod",
        spec=specs.absolute_spec(spec),
        options=settings,
        permanent=permanent,
    )


@cli.command()
@click.option("-f", "--force", is_flag=True, help="Remove its mounts too.")
@_vm_option
@click.argument("name")
def rmmod(force: bool, vm_name: str | None, name: str) -> None:
    """Unload the module NAME."""
    _call(vm_name, "rmmod", name=name, force=force)


@cli.command()
@_vm_option
@click.argument("spec", metavar="NAME|FILE.py")
def reload(vm_name: str | None, spec: str) -> None:
    """Load a module's present code in place of the running one.

    If that fails the running one stays.
    """
    from umvm import specs

    _call(vm_name, "reload", name=specs.absolute_spec(spec))


@cli.command()
@_vm_option
@_json_option
def lsmod(vm_name: str | None, as_json: bool) -> None:
    """List the loaded modules."""
    rows = _call(vm_name, "lsmod")
    show_rows(rows, ("name", "state", "uses", "permanent", "filesystems", "doc"), as_json)


# --- mounts and processes ---------------------------------------------------------------------


@cli.command()
@click.option("-t", "--type", "fstype", help="File system type.")
@click.option("--bind", is_flag=True, help="Show the host's SOURCE at TARGET too (-t bind).")
@click.option("-o", "--options", multiple=True, metavar="a=b,c", help="Options of the mount.")
@_vm_option
@click.argument("source")
@click.argument("target")
def mount(
    fstype: str | None, bind: bool, options: tuple[str, ...], vm_name: str | None, source: str,
    target: str,
) -> None:  # fmt: skip
    """Mount SOURCE on TARGET in the VM; a module that has the type is loaded if need be."""
    from umvm import specs

    settings: dict[str, str] = {}
    for text in options:
        settings |= specs.parse_options(text)
    if bind and fstype not in (None, "bind"):
        raise UsageError("--bind and --type exclude each other")
    if not bind and fstype is None:
        raise UsageError("what kind of mount? Give --type TYPE or --bind")
    cwd = os.getcwd()
    _call(
        vm_name,
        "mount",
        type="bind" if bind else fstype,
        source=specs.absolute_source(source)
        if fstype != "bind" and not bind
        else os.path.join(cwd, source),
        target=os.path.join(cwd, target),
        options=settings,
        cwd=cwd,
    )


@cli.command()
@click.option("-f", "--force", is_flag=True, help="Even if files are open; they get EIO.")
@click.option("-l", "--lazy", is_flag=True, help="Detach now, finish with the last user.")
@_vm_option
@click.argument("target")
def umount(force: bool, lazy: bool, vm_name: str | None, target: str) -> None:
    """Remove the mount on TARGET."""
    cwd = os.getcwd()
    _call(vm_name, "umount", target=os.path.join(cwd, target), force=force, lazy=lazy, cwd=cwd)


@cli.command()
@_vm_option
@_json_option
def mounts(vm_name: str | None, as_json: bool) -> None:
    """List the VM's mounts."""
    show_rows(_call(vm_name, "mounts"), ("type", "source", "target", "options"), as_json)


@cli.command()
@_vm_option
@_json_option
def ps(vm_name: str | None, as_json: bool) -> None:
    """List the VM's processes."""
    show_rows(_call(vm_name, "ps"), ("pid", "ppid", "comm", "cwd"), as_json)


# --- the rest ---------------------------------------------------------------------------------


@cli.command()
@_json_option
def doctor(as_json: bool) -> int:
    """Check what this kernel offers; exit 1 if something needed is missing."""
    from umvm.doctor import examine

    checks = examine()
    _end_by_sigpipe()
    rows = [check._asdict() for check in checks]
    if as_json:
        show_rows(rows, (), True)
    else:
        for check in checks:
            click.echo(f"{check.state:<9}{check.name:<21}{check.reason}")
    return int(any(check.state == "missing" for check in checks))


@cli.command()
@click.argument("action", type=click.Choice(["ls", "clear"]), metavar="ls|clear")
@_json_option
def cache(action: str, as_json: bool) -> None:
    """List or delete the patched copies of programs and libraries that `--engine agent` uses."""
    from umvm.agent.cache import Cache, default_directory

    store = Cache(default_directory())
    if action == "clear":
        click.echo(f"{store.clear()} entries deleted")
        return
    usable = {entry.key for entry in store.entries()}
    rows = [
        {
            "sites": entry.sites,
            "bytes": entry.copy_size,
            "intact": entry.key in usable and (not entry.stub_length or store.intact(entry)),
            "copy": entry.name,
            "file": entry.path,
        }
        for entry in store.known()
    ]
    show_rows(rows, ["sites", "bytes", "intact", "copy", "file"], as_json)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL, for its start-up file to evaluate."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, PROGRAM, _COMPLETE).source())


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; errors become one line on stderr and the exit status returned."""
    return guarded(lambda: _invoke(arguments))


def _invoke(arguments: Sequence[str]) -> int:
    try:
        status = cli.main(
            args=list(arguments),
            prog_name=PROGRAM,
            standalone_mode=False,
            complete_var=_COMPLETE,
        )
    except click.ClickException as error:
        return complain(error.format_message(), error.exit_code)
    except click.Abort:
        return 130
    return status if isinstance(status, int) else 0


def _call(vm_name: str | None, verb: str, **args: object) -> Any:
    from umvm.control import client

    return client.call(client.find_vm(vm_name), verb, args)


def show_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print rows as JSON or as a table; a column that no row has is left out."""
    _end_by_sigpipe()
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=2))
        return
    columns = [column for column in columns if not rows or any(column in row for row in rows)]
    table = [[column.upper() for column in columns]]
    table += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    for line in table:
        pairs = zip(line, widths, strict=True)
        text = "  ".join(cell.ljust(width) for cell, width in pairs).rstrip()
        click.echo(text.encode("utf-8", "backslashreplace").decode())


def _end_by_sigpipe() -> None:
    """Let `umvm ps | head` end as other programs do (Python ignores SIGPIPE)."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _cell(value: object) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ",".join(f"{k}={v}" if v != "" else str(k) for k, v in value.items()) or "-"
        case list() | tuple():
            return ",".join(map(str, value)) or "-"
        case _:
            return str(value)
