"""What one call costs: native, in a VM that serves nothing of it, served by a Python file system.

Runs the loops of guests.c interleaved and prints the median and the ratio to native. PRoot is
measured too where it is installed. `python benchmarks/calls.py [--rounds N] [--json]`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
UMVM = [sys.executable, "-m", "umvm"]
MOUNT = ["--mount", "memory:none:{served}"]

LOOPS = (
    # loop, iterations, path on the host, path in the mount
    ("getppid", 200_000, "/", None),
    ("trapped", 20_000, "/", None),
    ("stat", 20_000, "/usr/bin/env", "{served}/file"),
    ("open+close", 10_000, "/usr/bin/env", "{served}/file"),
    ("pread", 10_000, "/usr/bin/env", "{served}/file"),
    ("pwrite", 10_000, "{scratch}", "{served}/file"),
    ("write", 20_000, "/dev/null", None),
    ("vfork+exec", 300, "/bin/true", "{served}/true"),
)


def measure(command: list[str]) -> float:
    """Nanoseconds per call, printed last by the guest."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/guests"
        subprocess.run(["cc", "-O2", "-o", program, str(HERE / "guests.c")], check=True)
        places = {"served": f"{directory}/mnt", "scratch": f"{directory}/scratch"}
        os.mkdir(places["served"])
        Path(places["scratch"]).write_bytes(b"x" * 4096)
        rows = [row for loop in LOOPS for row in one_loop(loop, program, places, options.rounds)]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'call':12} {'where':14} {'ns':>10} {'ratio':>8}")
    for row in rows:
        print(f"{row['call']:12} {row['where']:14} {row['ns']:10.0f} {row['ratio']:8.2f}")


def one_loop(
    loop: tuple[str, int, str, str | None], program: str, places: dict[str, str], rounds: int
) -> list[dict[str, object]]:
    """Measure one loop everywhere, interleaved."""
    name, count, host, served = loop
    host = host.format(**places)
    mount = [word.format(**places) for word in MOUNT]
    call = [program, name, str(count), host]
    fill = "cp /bin/true {served}/file && cp /bin/true {served}/true".format(**places)
    commands = {
        "native": call,
        "vm, no mount": [*UMVM, "run", "--", *call],
        "vm, a mount": [*UMVM, "run", *mount, "--", *call],
    }
    if served is not None:
        inner = " ".join([program, name, str(count), served.format(**places)])
        commands["served"] = [*UMVM, "run", *mount, "--", "sh", "-c", f"{fill} && {inner}"]
    if shutil.which("proot"):
        commands["proot"] = ["proot", "-b", "/tmp:/mnt", *call]
    found: dict[str, list[float]] = {where: [] for where in commands}
    for _ in range(rounds):
        for where, command in commands.items():
            found[where].append(measure(command))
    native = statistics.median(found["native"])
    return [
        {"call": name, "where": where, "ns": statistics.median(times),
         "min": min(times), "max": max(times), "ratio": statistics.median(times) / native}
        for where, times in found.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
