"""What fusepy and mfusepy hand to a file system as C structures, as plain Python objects.

The field names are those of libfuse 2.9 and 3 (fuse_common.h, fuse.h). Importable by itself on
Python 3.8 and later.
"""

from __future__ import annotations

from typing import Any

from .fuse_options import FuseOptions


class _Struct:
    """Fields with a default of 0; any field may be set, as with ctypes structures."""

    _fields: tuple[str, ...] = ()

    def __init__(self, **values: Any) -> None:
        for name in self._fields:
            setattr(self, name, 0)
        for name, value in values.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __repr__(self) -> str:
        shown = [f"{k}={v!r}" for k, v in vars(self).items() if v]
        return f"{type(self).__name__}({', '.join(shown)})"


class FileInfo(_Struct):
    """`struct fuse_file_info`: an open file, where `raw_fi` was asked for."""

    flags: int
    direct_io: int
    fh: Any
    flush: int
    _fields = tuple(
        str.split(
            "flags fh_old writepage direct_io keep_cache flush nonseekable flock_release "
            "cache_readdir noflush parallel_direct_writes fh lock_owner poll_events"
        )
    )


class ConnInfo(_Struct):
    """`struct fuse_conn_info`: what init_with_config may look at; changes have no effect."""

    _fields = tuple(
        str.split(
            "proto_major proto_minor async_read max_write max_read max_readahead capable want "
            "max_background congestion_threshold time_gran"
        )
    )


class Config(_Struct):
    """`struct fuse_config` of libfuse 3; what init_with_config sets here counts."""

    _fields = tuple(
        str.split(
            "set_gid gid set_uid uid set_mode umask entry_timeout negative_timeout attr_timeout "
            "intr intr_signal remember hard_remove use_ino readdir_ino direct_io kernel_cache "
            "auto_cache no_rofd_flush ac_attr_timeout_set ac_attr_timeout nullpath_ok "
            "parallel_direct_writes show_help modules debug fmask dmask"
        )
    )


def connection() -> ConnInfo:
    """The connection as libfuse 3 would describe it on a kernel of today."""
    return ConnInfo(proto_major=7, proto_minor=31, max_write=1 << 17, max_readahead=1 << 17,
                    max_background=12, congestion_threshold=9, time_gran=1)  # fmt: skip


def config_of(options: FuseOptions) -> Config:
    """The configuration that the mount options make."""
    config = Config(nullpath_ok=int(options.nopath))
    for name in ("hard_remove", "use_ino", "direct_io", "debug"):
        setattr(config, name, int(getattr(options, name)))
    for name in ("entry_timeout", "negative_timeout", "attr_timeout"):
        setattr(config, name, getattr(options, name))
    for name, flag in (("uid", "set_uid"), ("gid", "set_gid"), ("umask", "set_mode")):
        value = getattr(options, name)
        setattr(config, flag, int(value is not None))
        setattr(config, name, value or 0)
    return config


def options_of(config: Config, options: FuseOptions) -> FuseOptions:
    """The mount options after init_with_config had its say."""
    return options._replace(
        hard_remove=bool(config.hard_remove),
        use_ino=bool(config.use_ino or config.readdir_ino),
        direct_io=bool(config.direct_io),
        nopath=bool(config.nullpath_ok),
        entry_timeout=float(config.entry_timeout),
        negative_timeout=float(config.negative_timeout),
        attr_timeout=float(config.attr_timeout),
        uid=config.uid if config.set_uid else None,
        gid=config.gid if config.set_gid else None,
        umask=config.umask if config.set_mode else None,
    )
