"""Another identity for the guests: `umvm run -m ident` and they are root, as far as they can see.

Options:

- `uid=`, `gid=` the first process's ids or names, 0 by default; `gid` by default the group that the
  user has in the password file, else the number of `uid`
- `groups=` its further groups, with `:` between them, by default `gid` only
- `caps=` its capabilities: `all`, `none`, or names with `:` between them; by default all for root
  and none for others. The bounding set is limited to them.
- `unknown=` whose files those are that no guest changed: `own`, the default: the files of the user
  who runs the VM are `uid`'s, and likewise for the group; `real`: as they are; `root`: all `uid`'s
- `files=UID[:GID]` whose the files of the user who runs the VM are, by default `uid`'s and `gid`'s
- `load=FILE` what is known of owners at first: saved by this module, fakeroot or pseudo
- `save=FILE` where it is saved in the end: fakeroot's format, or a database if the name ends in .db
- `owners=FILE` a database that is kept up to date all the time, and that VMs may share
- `lenient` what only root may do on the host, and means nothing in a VM, seems to succeed

What guests do to owners, modes and devices is remembered, and shown to them: docs/identity.md.
What they may do on the host is still what the user who runs the VM may do.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

from umvm import capabilities
from umvm.errors import UsageError
from umvm.interfaces.identity import ID_MAX, Credentials, Identity, Unknown, login
from umvm.owners import adopt
from umvm.routes import Identity as IdentityRoute

_OPTIONS = frozenset(
    ("uid", "gid", "groups", "caps", "lenient", "unknown", "files", "load", "save", "owners")
)
_UNKNOWN = {"own": 0, "real": 1, "root": 2}


class Ids(Identity):
    """All guests start as one user, who has the real user's files."""

    def __init__(
        self, uid: int, gid: int, groups: tuple[int, ...], lenient: bool = False,
        caps: int | None = None, how: int = 0, files: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        self.lenient = lenient
        self._how = how
        self._first = login(uid, gid, groups, caps)
        self._own = os.geteuid(), os.getegid()
        self._shown = (self._first.ruid, self._first.rgid) if files is None else files

    def first(self) -> Credentials:
        """As the options say."""
        return self._first

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """The real user's files are the guests', or none, or all of them."""
        shown = self._shown
        if self._how:
            return (uid, gid) if self._how == _UNKNOWN["real"] else shown
        return (
            shown[0] if uid == self._own[0] else uid,
            shown[1] if gid == self._own[1] else gid,
        )

    def unknown(self) -> Unknown:
        """The same."""
        return Unknown(self._how, self._own, self._shown)


def _number(text: str, find: Callable[[str], int]) -> int:
    if text.isascii() and text.isdecimal():
        if int(text) > ID_MAX:
            raise UsageError(f"ident: {text} is no id")
        return int(text)
    try:
        return find(text)
    except KeyError:
        raise UsageError(f"ident: there is no {text!r}") from None


def _user(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def make(options: dict[str, str]) -> Ids:
    """An identity from the module's options. **Errors** UsageError."""
    unknown = set(options) - _OPTIONS
    if unknown:
        known = ", ".join(sorted(_OPTIONS))
        raise UsageError(f"ident: unknown option {min(unknown)!r} (there are {known})")
    uid = _number(options.get("uid", "0"), _user)
    gid = _number(options["gid"], _group) if "gid" in options else _group_of(uid)
    names = options.get("groups", str(gid)).split(":")
    groups = tuple(_number(name, _group) for name in names if name)
    try:
        caps = capabilities.read(options["caps"], ":") if "caps" in options else None
    except ValueError as error:
        raise UsageError(f"ident: {error}") from None
    how = options.get("unknown", "own")
    if how not in _UNKNOWN:
        raise UsageError(f"ident: unknown={how} (there are {', '.join(_UNKNOWN)})")
    files = None
    if "files" in options:
        user, _, group = options["files"].partition(":")
        owner = _number(user, _user)
        files = owner, _number(group, _group) if group else _group_of(owner)
    return Ids(uid, gid, groups, "lenient" in options, caps, _UNKNOWN[how], files)


def umvm_start(vm: Any, options: dict[str, str]) -> list[IdentityRoute]:
    """Answer for who the guests are."""
    identity = make(options)
    adopt.recover()
    if "load" in options:
        vm.owners.load(Path(options["load"]))
    if "owners" in options:
        vm.owners.keep_in(Path(options["owners"]))
    if "save" in options:
        vm.owners.save_at_end(Path(options["save"]))
    return [IdentityRoute(identity)]
