"""The pluggy contract between umvm and its modules: six hooks, all optional.

They are called at load, unload and process events, never once per system call. A module implements
one by a function of the same name marked with `@hookimpl`; it may leave out arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from umvm.routes import Route

PROJECT = "umvm"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def umvm_start(vm: Any, options: dict[str, str]) -> Sequence[Route] | None:
    """Return what the module answers for. Called once per load, for this module alone.

    `options` are those of `umvm insmod SPEC a=b`. An exception refuses the load.
    """


@hookspec
def umvm_stop(vm: Any) -> None:
    """The module's routes are gone and no new request reaches it: release what it holds."""


@hookspec
def umvm_process_started(vm: Any, process: Any, parent: Any) -> None:
    """A guest process began by fork, vfork or clone; `parent` is None for the first one."""


@hookspec
def umvm_process_exec(vm: Any, process: Any) -> None:
    """A guest process is about to run another program."""


@hookspec
def umvm_process_exited(vm: Any, process: Any, status: int | None) -> None:
    """A guest process ended; `status` as from waitpid(2), None when it is not known."""


@hookspec
def umvm_commands() -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Return click commands that become `umvm NAME …`. The VM may not be running."""
