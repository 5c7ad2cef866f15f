"""The names of the machine, where root in the VM may change them: the VM's own from then on."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from umvm.interfaces.identity import CAP_SYS_ADMIN, Identity
from umvm.syscalls.context import DONE, Reply, Request, fail, signed
from umvm.syscalls.identity import credentials, handles

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

WATCH_NAMES = 4
"""`Engine.watch`: the VM has names of its own."""
FIELD = 65
"""Bytes of each of the six fields of struct new_utsname (linux/utsname.h)."""
_FILES = {
    "sethostname": b"/proc/sys/kernel/hostname",
    "setdomainname": b"/proc/sys/kernel/domainname",
}


@handles("sethostname", "setdomainname")
def sys_sethostname(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """sethostname(2), setdomainname(2). **Errors** EPERM, EINVAL."""
    if not credentials(vm, req.tid, identity).may(CAP_SYS_ADMIN):
        raise fail(errno.EPERM)
    size = signed(req.args[1])
    if not 0 <= size < FIELD:
        raise fail(errno.EINVAL)
    which = "sethostname" if req.nr == 170 else "setdomainname"
    name = req.read(req.args[0], size).split(b"\0", 1)[0]
    vm.names[which] = name
    vm.show_in_proc(_FILES[which], lambda: name + b"\n")
    vm.engine.watch(WATCH_NAMES)
    return DONE


@handles("uname")
def sys_uname(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """uname(2)."""
    if not vm.names:
        return None
    system, host, *more = (os.fsencode(field) for field in os.uname())
    with open("/proc/sys/kernel/domainname", "rb") as file:
        domain = file.read().rstrip(b"\n")
    host, domain = vm.names.get("sethostname", host), vm.names.get("setdomainname", domain)
    fields = [system, host, *more, domain]
    req.write(req.args[0], b"".join(field.ljust(FIELD, b"\0") for field in fields))
    return DONE
