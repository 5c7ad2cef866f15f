"""A host name for the VM: `umvm run -m hostname,name=mars`.

Options: `name=`, `domain=`, `release=`, `version=` and `machine=`, by default the host's. Guests
that are root (see the module ident) may change the first two. The files of /proc/sys/kernel read
so too, and can't be written.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import Any

from umvm import Reply, Request, SyscallClass
from umvm.errors import UsageError
from umvm.interfaces.identity import CAP_SYS_ADMIN

_FIELD = 65
"""Bytes of each of the six fields of struct new_utsname (linux/utsname.h)."""


FILES = {
    "sethostname": b"/proc/sys/kernel/hostname",
    "setdomainname": b"/proc/sys/kernel/domainname",
}
KERNEL_FILES = (b"/proc/sys/kernel/osrelease", b"/proc/sys/kernel/version")
OPTIONS = frozenset(("name", "domain", "release", "version", "machine"))


def _domain() -> bytes:
    """The one name that os.uname() lacks."""
    with open("/proc/sys/kernel/domainname", "rb") as file:
        return file.read().rstrip(b"\n")


class Names:
    """The names of one VM, and the calls on them."""

    def __init__(self, vm: Any, options: dict[str, str]) -> None:
        self._vm = vm
        name, domain = options.get("name"), options.get("domain")
        host = os.uname()
        self._kernel = [
            os.fsencode(options.get(field, getattr(host, field)))
            for field in ("release", "version", "machine")
        ]
        self._names = {
            "sethostname": os.fsencode(os.uname().nodename if name is None else name),
            "setdomainname": _domain() if domain is None else os.fsencode(domain),
        }
        if any(len(text) >= _FIELD for text in (*self._names.values(), *self._kernel)):
            raise UsageError(f"hostname: a name has at most {_FIELD - 1} bytes")

    def text(self, which: str) -> bytes:
        """A name as a file of /proc."""
        return self._names[which] + b"\n"

    def kernel(self, field: int) -> bytes:
        """The release (0) or version (1) of the kernel as a file of /proc."""
        return self._kernel[field] + b"\n"

    def _is_root(self, req: Request) -> bool:
        if self._vm.identity is not None:
            return bool(self._vm.creds.get(req.tid).may(CAP_SYS_ADMIN))
        return bool(self._vm.procs.caller(req.tid).uid == 0)

    def uname(self, req: Request) -> Reply:
        """uname(2)."""
        system = os.fsencode(os.uname().sysname)
        fields = [system, self._names["sethostname"], *self._kernel, self._names["setdomainname"]]
        req.write(req.args[0], b"".join(field.ljust(_FIELD, b"\0") for field in fields))
        return Reply.value(0)

    def set(self, which: str, req: Request) -> Reply:
        """sethostname(2), setdomainname(2). **Errors** EPERM: not root; EINVAL: too long."""
        address, size, *_ = req.args
        if not self._is_root(req):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if not 0 <= size < _FIELD:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._names[which] = req.read(address, size).split(b"\0", 1)[0]
        return Reply.value(0)


def umvm_start(vm: Any, options: dict[str, str]) -> list[SyscallClass]:
    """Answer for the names of the machine."""
    unknown = set(options) - OPTIONS
    if unknown:
        there = ", ".join(sorted(OPTIONS))
        raise UsageError(f"hostname: unknown option {min(unknown)!r} (there are {there})")
    names = Names(vm, options)
    for which, path in FILES.items():
        vm.show_in_proc(path, partial(names.text, which))
    for field, path in enumerate(KERNEL_FILES):
        vm.show_in_proc(path, partial(names.kernel, field))
    return [
        SyscallClass(("uname",), names.uname),
        SyscallClass(("sethostname",), lambda req: names.set("sethostname", req)),
        SyscallClass(("setdomainname",), lambda req: names.set("setdomainname", req)),
    ]


def umvm_stop(vm: Any) -> None:
    """The names are the host's again."""
    for path in (*FILES.values(), *KERNEL_FILES):
        vm.show_in_proc(path, None)
