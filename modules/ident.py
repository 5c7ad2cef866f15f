"""Another identity for the guests: `umvm run -m ident` and they are root, as far as they can see.

Options:

- `uid=`, `gid=` the first process's ids or names, 0 by default; `gid` by default the group that the
  user has in the password file, else the number of `uid`
- `groups=` its further groups, with `:` between them, by default `gid` only
- `caps=` its capabilities: `all`, `none`, or names with `:` between them; by default all for root
  and none for others. The bounding set is limited to them.
- `lenient` changes of owner and device files that only root may make on the host seem to succeed:
  the owner stays, and an empty file takes the place of a device

Files of the user who runs the VM are shown as `uid`'s, and likewise for the group. What guests may
do on the host is still what that user may do.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from typing import Any

from umvm import capabilities
from umvm.errors import UsageError
from umvm.interfaces.identity import ID_MAX, Credentials, Identity, login
from umvm.routes import Identity as IdentityRoute

_OPTIONS = frozenset(("uid", "gid", "groups", "caps", "lenient"))


class Ids(Identity):
    """All guests start as one user, who has the real user's files."""

    def __init__(
        self, uid: int, gid: int, groups: tuple[int, ...], lenient: bool = False,
        caps: int | None = None,
    ) -> None:  # fmt: skip
        self.lenient = lenient
        self._first = login(uid, gid, groups, caps)
        self._own = os.geteuid(), os.getegid()

    def first(self) -> Credentials:
        """As the options say."""
        return self._first

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """The real user's files are the guests'."""
        return (
            self._first.ruid if uid == self._own[0] else uid,
            self._first.rgid if gid == self._own[1] else gid,
        )

    def on_host(self, uid: int, gid: int) -> tuple[int, int]:
        """What is to be the guests' must be the real user's."""
        return (
            self._own[0] if uid == self._first.ruid else uid,
            self._own[1] if gid == self._first.rgid else gid,
        )


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
    return Ids(uid, gid, groups, "lenient" in options, caps)


def umvm_start(vm: Any, options: dict[str, str]) -> list[IdentityRoute]:
    """Answer for who the guests are."""
    return [IdentityRoute(make(options))]
