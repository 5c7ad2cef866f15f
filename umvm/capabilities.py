"""Names of capabilities (linux/capability.h of Linux 6.18), and sets of them as text."""

from __future__ import annotations

from collections.abc import Iterator

from umvm.interfaces.identity import all_capabilities

NAMES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable "
    "net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio "
    "sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time "
    "sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog "
    "wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()
"""By number."""
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


def read(text: str, separator: str = ",") -> int:
    """A set from `all`, `none`, or a list of names, numbers (`0x…`: a whole set) and `-name`.

    A list that begins with a `-name` takes from all of them. **Errors** ValueError.
    """
    every = all_capabilities()
    if text in ("all", "none"):
        return every if text == "all" else 0
    found = every if text.startswith("-") else 0
    for word in text.split(separator):
        bits = _bits(word.lstrip("-"))
        found = found & ~bits if word.startswith("-") else found | bits
    return found


def _bits(word: str) -> int:
    name = word.lower().removeprefix("cap_")
    if name == "all":
        return all_capabilities()
    if name in _NUMBERS:
        return 1 << _NUMBERS[name] & all_capabilities()
    try:
        bits = int(name, 16) if name.startswith("0x") else 1 << int(name, 10)
    except ValueError:
        bits = -1
    if not 0 < bits < 1 << 64:
        raise ValueError(f"there is no capability {word!r}")
    return bits & all_capabilities()


def names(bits: int) -> Iterator[str]:
    """The names of a set's members, by number."""
    for number in range(bits.bit_length()):
        if bits >> number & 1:
            yield NAMES[number] if number < len(NAMES) else str(number)


def show(bits: int) -> str:
    """A set as `all`, `none` or a list with commas."""
    if bits == all_capabilities():
        return "all"
    return ",".join(names(bits)) or "none"
