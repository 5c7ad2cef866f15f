"""Calls on the network, time, the machine as a whole, and calls that no kernel has any more."""

from __future__ import annotations

from errno import ENOSYS, EPERM

from .row import ADDRESS, Row, deny, free, trap

_SOURCE = "the address of an AF_UNIX sender on a mount is shown untranslated"
_OPTIONS = "of sockets that a network stack answers for"
_VDSO = "the vDSO answers most of these without any call"
_GONE = "no kernel has it any more"
_PRIVILEGE = "the kernel refuses it without privilege"

NETWORK: tuple[Row, ...] = (
    trap(41, "socket", "int int int", "network"),
    trap(42, "connect", "fd sock size", "network"),
    trap(43, "accept", "fd sock ptr", "network", _SOURCE),
    trap(44, "sendto", "fd ptr size flags sock size", "network", "only with an address", ADDRESS),
    trap(45, "recvfrom", "fd ptr size flags sock ptr", "network", _SOURCE, ADDRESS),
    trap(46, "sendmsg", "fd ptr flags", "network"),
    trap(47, "recvmsg", "fd ptr flags", "network", "a virtual descriptor received keeps its inode"),
    trap(48, "shutdown", "fd int", "network", _OPTIONS),
    trap(49, "bind", "fd sock size", "network"),
    trap(50, "listen", "fd int", "network", _OPTIONS),
    trap(51, "getsockname", "fd sock ptr", "network"),
    trap(52, "getpeername", "fd sock ptr", "network"),
    trap(53, "socketpair", "int int int ptr", "network"),
    trap(54, "setsockopt", "fd int int ptr size", "network", _OPTIONS),
    trap(55, "getsockopt", "fd int int ptr ptr", "network", _OPTIONS),
    trap(288, "accept4", "fd sock ptr flags", "network", _SOURCE),
    trap(299, "recvmmsg", "fd ptr int flags ptr", "network", _SOURCE),
    trap(307, "sendmmsg", "fd ptr int flags", "network"),
)

TIME: tuple[Row, ...] = (
    free(35, "nanosleep", "ptr ptr", "time"),
    free(36, "getitimer", "int ptr", "time"),
    free(37, "alarm", "int", "time"),
    free(38, "setitimer", "int ptr ptr", "time"),
    free(96, "gettimeofday", "ptr ptr", "time", _VDSO),
    free(100, "times", "ptr", "time"),
    trap(159, "adjtimex", "ptr", "time"),
    trap(164, "settimeofday", "ptr ptr", "time"),
    free(201, "time", "ptr", "time", _VDSO),
    free(222, "timer_create", "int ptr ptr", "time"),
    free(223, "timer_settime", "int flags ptr ptr", "time"),
    free(224, "timer_gettime", "int ptr", "time"),
    free(225, "timer_getoverrun", "int", "time"),
    free(226, "timer_delete", "int", "time"),
    trap(227, "clock_settime", "int ptr", "time"),
    free(228, "clock_gettime", "int ptr", "time", _VDSO),
    free(229, "clock_getres", "int ptr", "time", _VDSO),
    free(230, "clock_nanosleep", "int flags ptr ptr", "time"),
    trap(305, "clock_adjtime", "int ptr", "time"),
)

SYSTEM: tuple[Row, ...] = (
    trap(63, "uname", "ptr", "system"),
    free(99, "sysinfo", "ptr", "system"),
    free(103, "syslog", "int ptr size", "system", "the kernel's own log"),
    free(153, "vhangup", "", "system", _PRIVILEGE),
    deny(163, "acct", "path", "system", EPERM, "takes the path of a real file"),
    deny(167, "swapon", "path flags", "system", EPERM, "takes the path of a real file"),
    deny(168, "swapoff", "path", "system", EPERM, "takes the path of a real file"),
    free(169, "reboot", "int int int ptr", "system", _PRIVILEGE),
    trap(170, "sethostname", "ptr size", "system"),
    trap(171, "setdomainname", "ptr size", "system"),
    free(172, "iopl", "int", "system", _PRIVILEGE),
    free(173, "ioperm", "int int int", "system", _PRIVILEGE),
    free(175, "init_module", "ptr size str", "system", _PRIVILEGE),
    free(176, "delete_module", "str flags", "system", _PRIVILEGE),
    free(246, "kexec_load", "int int ptr flags", "system", _PRIVILEGE),
    free(
        298,
        "perf_event_open",
        "ptr pid int fd flags",
        "system",
        "a probe on a path needs privilege; the rest counts the guest's own events",
    ),
    free(313, "finit_module", "fd str flags", "system", _PRIVILEGE),
    free(318, "getrandom", "ptr size flags", "system"),
    free(320, "kexec_file_load", "fd fd size str flags", "system", _PRIVILEGE),
    deny(
        321,
        "bpf",
        "int ptr size",
        "system",
        EPERM,
        "can open and pin objects by path; natively EPERM without privilege",
    ),
)

_OLD = (
    (134, "uselib", "path"),
    (156, "_sysctl", "ptr"),
    (174, "create_module", "str size"),
    (177, "get_kernel_syms", "ptr"),
    (178, "query_module", "str int ptr size ptr"),
    (180, "nfsservctl", "int ptr ptr"),
    (181, "getpmsg", ""),
    (182, "putpmsg", ""),
    (183, "afs_syscall", ""),
    (184, "tuxcall", ""),
    (185, "security", ""),
    (212, "lookup_dcookie", "int ptr size"),
    (236, "vserver", ""),
)

GONE: tuple[Row, ...] = tuple(
    deny(number, name, args, "gone", ENOSYS, _GONE) for number, name, args in _OLD
)

ROWS: tuple[Row, ...] = NETWORK + TIME + SYSTEM + GONE
