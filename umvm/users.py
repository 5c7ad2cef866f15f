"""Users and groups by name or number, from the host's user database."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from typing import NamedTuple

from umvm.errors import UsageError
from umvm.interfaces.identity import ID_MAX


class Account(NamedTuple):
    """A user as a process may become it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def number(text: str, find: Callable[[str], int], what: str) -> int:
    """The id for a name or number. **Errors** UsageError: it is neither."""
    digits = text.removeprefix("#")
    if digits.isascii() and digits.isdecimal():
        if int(digits) > ID_MAX:
            raise UsageError(f"{text} is no id of a {what}")
        return int(digits)
    try:
        return find(text)
    except KeyError:
        raise UsageError(f"there is no {what} {text!r}") from None


def uid_of(text: str) -> int:
    """A user's id. **Errors** UsageError."""
    return number(text, lambda name: pwd.getpwnam(name).pw_uid, "user")


def gid_of(text: str) -> int:
    """A group's id. **Errors** UsageError."""
    return number(text, lambda name: grp.getgrnam(name).gr_gid, "group")


def account(text: str) -> Account:
    """The user that `USER[:GROUP]` names; with a group that is its only one. UsageError."""
    user, colon, group = text.partition(":")
    uid = uid_of(user)
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        entry = pwd.struct_passwd((str(uid), "", uid, uid, "", "/", ""))
    if colon:
        gid = gid_of(group)
        groups = [gid]
    else:
        gid = entry.pw_gid
        groups = os.getgrouplist(entry.pw_name, gid)
    shell = entry.pw_shell or "/bin/sh"
    return Account(entry.pw_name, uid, gid, tuple(sorted(set(groups))), entry.pw_dir, shell)


def user_name(uid: int) -> str | None:
    """A user's name; None: it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def group_name(gid: int) -> str | None:
    """A group's name; None: it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None
