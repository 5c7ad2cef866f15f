"""Writes down what processes do: umvm insmod ./tree.py file=/tmp/tree."""

import os

files = {}  # by VM


def umvm_start(vm, options):
    files[vm] = open(options["file"], "a", buffering=1)


def umvm_stop(vm):
    files.pop(vm).close()


def depth(process):
    return 0 if process.parent is None else 1 + depth(process.parent)


def say(vm, process, what):
    print("  " * depth(process) + f"{process.pid} {what}", file=files[vm])


def umvm_process_started(vm, process, parent):
    say(vm, process, f"started by {parent.pid if parent else 'nobody here'}")


def umvm_process_exec(vm, process):
    say(vm, process, f"runs {os.path.basename(process.program).decode()}")


def umvm_process_exited(vm, process, status):
    say(
        vm,
        process,
        f"ended with {os.waitstatus_to_exitcode(status) if status is not None else '?'}",
    )
