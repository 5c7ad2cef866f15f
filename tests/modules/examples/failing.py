"""Counts the calls of a class that fail: umvm insmod ./failing.py calls=%file file=/tmp/failed."""

from collections import Counter

from umvm import SyscallClass

failed = {}  # by VM: the file, and the counts


def umvm_start(vm, options):
    counts = Counter()
    failed[vm] = options["file"], counts

    def hook(request):
        try:
            return vm.calls.pass_on(request, hook)  # what those after this hook answer
        except OSError as error:
            counts[error.strerror] += 1
            raise

    return [SyscallClass((options.get("calls", "%all"),), hook)]


def umvm_stop(vm):
    path, counts = failed.pop(vm)
    with open(path, "w") as file:
        file.writelines(f"{count} {text}\n" for text, count in counts.most_common())
