"""The entry point of the `umvm` command: `umvm run` starts without click, the rest with it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

PROGRAM = "umvm"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line and exit with its status: never returns."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    status = invoke(arguments)
    if arguments[:1] in (["run"], ["fakeroot"], ["proot"]):
        end(status)
    sys.exit(status)


def end(status: int) -> NoReturn:
    """End after a VM: nothing is left to be undone, and threads still wait."""
    os._exit(_flushed(status))


def _flushed(status: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass  # said already, or nobody is there to be told
    return status


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; an error becomes one line on stderr and the status returned."""
    if arguments[:1] == ["run"]:
        gc.disable()  # nothing that is made at the start is garbage; `run` enables it again
        from umvm import run_cli

        values = run_cli.read(arguments[1:])
        if values is not None:
            return guarded(lambda: run_cli.run(**values))
    if arguments[:1] == ["fakeroot"]:
        from umvm import fakeroot_cli

        return guarded(lambda: fakeroot_cli.run(arguments[1:]), f"{PROGRAM} fakeroot")
    if arguments[:1] == ["proot"]:
        from umvm import proot_cli

        return guarded(lambda: proot_cli.run(arguments[1:]), f"{PROGRAM} proot")
    from umvm import cli

    return cli.invoke(arguments)


def guarded(task: Callable[[], int], program: str = PROGRAM) -> int:
    """Run a task; an error that operators may meet becomes one line on stderr and its status."""
    from umvm.errors import UmvmError, exit_code_of, in_a_line

    try:
        status = task()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except UmvmError as error:
        return complain(str(error), error.exit_code, program)
    except OSError as error:
        return complain(in_a_line(error), exit_code_of(error.errno), program)
    return status


def complain(message: str, code: int, program: str = PROGRAM) -> int:
    """Print an error as one line and return its exit status."""
    text = " ".join(message.split())
    print(f"{program}: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
