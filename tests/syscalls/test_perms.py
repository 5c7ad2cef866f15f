"""Permissions: who may do what, and what the ids, modes and sticky bits of files make of it."""

from __future__ import annotations

import os

import pytest
from vfs_oracle import Oracle, guest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root to change ids")


@as_root
def test_who_may_do_what(same_on_tmpfs: Oracle) -> None:
    """Calls of five users in directories and on files of four owners and twelve modes."""
    lines = same_on_tmpfs(guest("vfs_table", "perms"), timeout=58).ok().splitlines()
    assert len(lines) == 240 and all("EACCES" in line or "EPERM" in line for line in lines[1:5])


@as_root
@pytest.mark.parametrize("seed", ["e", "f", "g", "h"])
def test_random_sequences_of_several_users(same_on_tmpfs: Oracle, seed: str) -> None:
    """Sequences of random calls, 550 a seed, by root and three other users."""
    text = same_on_tmpfs(guest("vfs_matrix", seed, "550", "25", "root"), timeout=58).ok()
    assert text.count("sequence") == 550


def test_own_files(same_on_tmpfs: Oracle) -> None:
    """What an ordinary user may not do to files that are her own, and access with the real ids."""

    def body() -> list[object]:
        import os

        out: list[object] = []

        def attempt(action: object, *args: object) -> None:
            try:
                out.append(action(*args))  # type: ignore[operator]
            except OSError as error:
                out.append(error.errno)

        if os.geteuid() == 0:
            os.setresgid(65534, 65534, 65534)
            os.chown(".", 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        os.makedirs("d/e")
        open("d/f", "w").close()
        for mode in (0o700, 0o600, 0o500, 0o400, 0o300, 0o200, 0o100, 0):
            os.chmod("d", mode)
            attempt(os.stat, "d/f") if mode in (0o600, 0o400) else out.append(os.access("d/f", 0))
            attempt(lambda: sorted(os.listdir("d")))
            attempt(os.chdir, "d")
            attempt(os.chdir, "..") if mode & 0o100 else None
            attempt(os.mkdir, "d/new")
            attempt(os.rmdir, "d/new")
            attempt(os.rename, "d/f", "d/g")
            attempt(os.rename, "d/g", "d/f")
            out += [os.access("d", mask) for mask in range(8)]
        os.chmod("d", 0o700)
        for mode in (0o6777, 0o6644, 0o2755):
            os.chmod("d/f", mode)
            out.append(oct(os.stat("d/f").st_mode))
            with open("d/f", "a") as file:
                file.write("x")
            out.append(oct(os.stat("d/f").st_mode))
            os.chmod("d/f", mode)
            os.truncate("d/f", 0)
            out.append(oct(os.stat("d/f").st_mode))
            os.chmod("d/f", mode)
            os.chown("d/f", -1, os.getegid())
            out.append(oct(os.stat("d/f").st_mode))
        attempt(os.chown, "d/f", 12345, -1)
        attempt(os.chown, "d/f", -1, 12345)
        attempt(os.mknod, "d/dev", 0o20666, os.makedev(1, 3))
        attempt(os.chroot, "d")
        for umask in (0o077, 0o777, 0):
            os.umask(umask)
            os.mkdir(f"d/m{umask}", 0o7777)
            os.close(os.open(f"d/f{umask}", os.O_CREAT, 0o7777))
            out += [oct(os.stat(f"d/{kind}{umask}").st_mode) for kind in "mf"]
            os.rmdir(f"d/m{umask}")
        return out

    assert "False" in same_on_tmpfs(body).ok()
