"""Mount options of FUSE file systems: what `-o` and `FUSE(…, option=value)` may say.

Importable by itself on Python 3.8 and later, as the stand-in for guests uses it too.
**Source**: libfuse 2.9 and 3.16 option tables (fuse.c, helper.c, mount.c), mount.fuse(8), mount(8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class FuseOptions(NamedTuple):
    """The options that make a difference here. Ids and modes are None when not given."""

    default_permissions: bool = False
    """The kernel's (here: the VM's) owner and mode checks; else the file system decides."""
    hard_remove: bool = False
    """An open file is really removed by unlink, not hidden until its last close."""
    use_ino: bool = False
    """`st_ino` counts; else inode numbers are made from paths."""
    nothreads: bool = False
    nopath: bool = False
    """Calls with a file handle get None for the path."""
    raw_fi: bool = False
    debug: bool = False
    direct_io: bool = False
    ro: bool = False
    auto_unmount: bool = False
    entry_timeout: float = 1.0
    negative_timeout: float = 0.0
    attr_timeout: float = 1.0
    max_read: int = 0
    """Largest read in bytes; 0: no limit."""
    max_write: int = 0
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    """Replaces the permission bits by 0777 less this."""
    fmask: int | None = None
    dmask: int | None = None
    fsname: str = ""
    subtype: str = ""
    encoding: str = "utf-8"


class OptionError(ValueError):
    """An option is unknown or has a malformed value."""


def _octal(text: str) -> int:
    return int(text, 8) & 0o777


_CONVERT: dict[str, Callable[[str], Any]] = {
    "entry_timeout": float,
    "negative_timeout": float,
    "attr_timeout": float,
    "max_read": int,
    "max_write": int,
    "uid": int,
    "gid": int,
    "umask": _octal,
    "fmask": _octal,
    "dmask": _octal,
    "fsname": str,
    "subtype": str,
    "encoding": str,
}
_ALIASES = {"readdir_ino": "use_ino"}

ACCEPTED = frozenset(
    str.split(
        # of libfuse: about the kernel's side of FUSE, or done here anyway
        "allow_other allow_root nonempty large_read big_writes kernel_cache auto_cache "
        "noauto_cache ac_attr_timeout noforget remember intr intr_signal max_readahead "
        "max_background congestion_threshold async_read sync_read atomic_o_trunc no_remote_lock "
        "no_remote_flock no_remote_posix_lock splice_write no_splice_write splice_move "
        "no_splice_move splice_read no_splice_read blkdev blksize clone_fd max_idle_threads "
        "max_threads no_rofd_flush parallel_direct_write parallel_direct_writes writeback_cache "
        "foreground "
        # of mount(8)
        "rw suid nosuid dev nodev exec noexec async sync dirsync atime noatime diratime nodiratime "
        "relatime norelatime strictatime nostrictatime lazytime nolazytime mand nomand silent loud "
        "defaults auto noauto user nouser users owner group _netdev nofail"
    )
)
"""Options that are allowed and have no effect in the file system (the VM may heed them)."""

KNOWN = frozenset(FuseOptions._fields) | frozenset(_ALIASES) | ACCEPTED


def parse(given: Mapping[str, str]) -> tuple[FuseOptions, dict[str, str]]:
    """Take FUSE options out of `given` (flags have an empty value); also return the rest.

    **Errors** OptionError: a value is malformed.
    """
    fields: dict[str, Any] = {}
    rest: dict[str, str] = {}
    for key, text in given.items():
        name = _ALIASES.get(key, key)
        if name in FuseOptions._fields:
            try:
                fields[name] = _CONVERT[name](text) if name in _CONVERT else True
            except ValueError:
                raise OptionError(f"bad value of option {key}: {text!r}") from None
        elif key not in ACCEPTED and not key.startswith("x-"):
            rest[key] = text
    return FuseOptions(**fields), rest


def refuse_unknown(rest: Mapping[str, str], known: str = "") -> None:
    """Raise OptionError if there are options that nobody knows, naming those that exist."""
    if rest:
        raise OptionError(
            f"unknown option{'s' * (len(rest) > 1)} {', '.join(sorted(rest))}; known are "
            f"{known}{', '.join(sorted(KNOWN))}"
        )
