"""A root directory and bind mounts for the guests of `umvm run`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from umvm import specs
from umvm.guest import bound
from umvm.guest.spaces import Space

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

SYSTEM = (
    "/dev", "/proc", "/sys", "/tmp", "/etc/host.conf", "/etc/hosts", "/etc/nsswitch.conf",
    "/etc/resolv.conf",
)  # fmt: skip
"""What programs of another root file system use of the host's as a rule, where it exists."""


def prepare(
    vm: VirtualMachine, root: str | None, binds: Sequence[specs.BindSpec], system: bool = False,
    space: Space | None = None,
) -> Space:  # fmt: skip
    """The space for guests with this root (None: as it is) and these `SRC[:DST[:opts]]`.

    **Errors** OSError: a path. UsageError: an option.
    """
    outer = space or vm.spaces.first
    space = outer
    if root is not None:
        place = os.fsencode(os.path.abspath(root))
        found = vm.walk(place, outer)
        if found.mount is None:  # a mount of its own, as / is one everywhere
            bound.bind(vm, place, place, {}, outer)
            found = vm.walk(place, outer)
        space = vm.spaces.get(outer.table, found.path)
    wanted = [specs.BindSpec(path, path, {}) for path in SYSTEM if system and os.path.exists(path)]
    for bind in [*wanted, *binds]:
        _bind(vm, bind, outer, space)
    return space


def _bind(vm: VirtualMachine, bind: specs.BindSpec, outer: Space, space: Space) -> None:
    """The source is a path of those who ask, the target one of the guests."""
    source = vm.walk(os.fsencode(bind.source), outer)
    bound.bind_found(vm, source, bind.source, os.fsencode(bind.target), bind.options, space, True)


def first_directory(vm: VirtualMachine, space: Space, wanted: str | None, here: str) -> str:
    """Where the first guest is to start: in the directory of ours, if its root has that too."""
    if wanted is not None:
        return os.path.join("/", wanted)
    try:
        found = vm.walk(os.fsencode(here), space)
        usable = found.mount is not None or os.path.isdir(found.host)
    except OSError:
        usable = False
    return here if usable else "/"
