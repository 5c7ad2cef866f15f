"""Locks on served files: the kernel keeps them on the file's placeholder."""

from __future__ import annotations

from collections.abc import Callable

from harness import Compiler, Result

AssertSame = Callable[..., Result]


def test_flock(assert_same: AssertSame) -> None:
    def body() -> list[object]:
        import fcntl
        import os

        out: list[object] = []
        one = os.open("f", os.O_RDWR | os.O_CREAT)
        two = os.open("f", os.O_RDONLY)

        def attempt(fd: int, how: int) -> str:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
                return "ok"
            except OSError as error:
                return str(error.errno)

        out += [attempt(one, fcntl.LOCK_SH), attempt(two, fcntl.LOCK_SH)]
        out += [attempt(one, fcntl.LOCK_EX), attempt(two, fcntl.LOCK_UN)]
        out += [attempt(one, fcntl.LOCK_EX), attempt(two, fcntl.LOCK_SH)]
        copy = os.dup(one)
        os.close(one)
        out.append(attempt(two, fcntl.LOCK_SH))
        if os.fork() == 0:  # it shares the description, and its exit releases nothing
            os._exit(0)
        os.wait()
        out.append(attempt(two, fcntl.LOCK_SH))
        os.rename("f", "g")
        os.link("g", "h")
        three = os.open("h", os.O_RDONLY)
        out.append(attempt(three, fcntl.LOCK_SH))
        os.close(copy)
        out += [attempt(two, fcntl.LOCK_EX), attempt(three, fcntl.LOCK_SH)]
        path = os.open("g", os.O_PATH)
        out += [attempt(path, fcntl.LOCK_SH), attempt(two, 77)]
        directory = os.open(".", os.O_RDONLY)
        out.append(attempt(directory, fcntl.LOCK_EX))
        return out

    assert_same(body)


def test_record_locks(assert_same: AssertSame, guest_binary: Compiler) -> None:
    """POSIX and OFD locks of two processes: conflicts, who holds them, ranges, every `whence`."""
    assert "deadlock" in assert_same([str(guest_binary("io_locks"))]).ok()


def test_blocked_lock_waits_and_is_interrupted(assert_same: AssertSame) -> None:
    def body() -> list[object]:
        import fcntl
        import os
        import signal
        import time

        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:

            def stop(*_: object) -> None:
                raise InterruptedError("handler")

            signal.signal(signal.SIGUSR1, stop)
            os.write(write, b"r")
            said = "locked"
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX)
            except InterruptedError as error:
                said = str(error)
            os.write(write, said.encode())
            fcntl.lockf(fd, fcntl.LOCK_EX)  # waits until the parent lets go
            os.write(write, b" then locked")
            os._exit(0)
        ready = os.read(read, 1)
        while open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "S":
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(pid, signal.SIGUSR1)
        first = os.read(read, 100)
        time.sleep(0.1)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        status = os.waitpid(pid, 0)[1]
        return [ready, first, os.read(read, 100), status]

    assert "handler" in assert_same(body).ok()


def test_locks_end_with_any_close_of_the_file(assert_same: AssertSame) -> None:
    """fcntl(2): a POSIX lock is lost when its process closes any descriptor of the file."""

    def body() -> list[str]:
        import fcntl
        import os

        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        out = []

        def other() -> str:
            pid = os.fork()
            if pid == 0:
                try:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os._exit(0)
                except OSError as error:
                    os._exit(error.errno or 255)
            return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        fcntl.lockf(fd, fcntl.LOCK_EX)
        out.append(other())
        os.close(os.open("f", os.O_RDONLY))
        out.append(other())
        return out

    assert "['11', '0']" in assert_same(body).ok()


def test_counter_under_a_lock(assert_same: AssertSame) -> None:
    """Four processes that read, add one and write, each time under a lock."""

    def body() -> bytes:
        import fcntl
        import os

        fd = os.open("n", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"%06d" % 0, 0)
        for how in (fcntl.flock, fcntl.lockf):
            pids = []
            for _ in range(4):
                pid = os.fork()
                if pid == 0:
                    own = os.open("n", os.O_RDWR)
                    for _ in range(50):
                        how(own, fcntl.LOCK_EX)
                        os.pwrite(own, b"%06d" % (int(os.pread(own, 6, 0)) + 1), 0)
                        how(own, fcntl.LOCK_UN)
                    os._exit(0)
                pids.append(pid)
            for pid in pids:
                os.waitpid(pid, 0)
        return os.pread(fd, 10, 0)

    assert "000400" in assert_same(body).ok()
