"""How long `umvm run true` takes against `python3 -c pass`, and what an idle supervisor holds.

Runs are interleaved; the medians are printed. `python benchmarks/start.py [--rounds N]`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UMVM = [sys.executable, "-m", "umvm"]


def seconds(command: list[str]) -> float:
    """The time that a command takes."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # a timeout would poll
    return time.perf_counter() - begin


def memory_of_supervisor() -> dict[str, int]:
    """VmRSS and its anonymous part, in kB, of a supervisor with a mount and a sleeping guest."""
    with tempfile.TemporaryDirectory() as mount:
        command = [*UMVM, "run", "--mount", f"memory:none:{mount}", "--", "sh", "-c"]
        process = subprocess.Popen(
            [*command, "echo ready; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        process.stdin.close()
        process.wait(30)
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon", "Threads")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    commands = {
        "python3 -c pass": [sys.executable, "-c", "pass"],
        "umvm run true": [*UMVM, "run", "true"],
        "umvm --version": [*UMVM, "--version"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(seconds(command))
    base = statistics.median(times["python3 -c pass"])
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name:16} {middle * 1e3:7.1f} ms  {middle / base:5.2f} x")
    print("idle supervisor:", ", ".join(f"{k} {v}" for k, v in memory_of_supervisor().items()))


if __name__ == "__main__":
    main()
