"""What calls and real work cost natively, in a VM with agent and in one with notification only.

Runs are interleaved; the table shows medians and their ratio to native. A mount is active, and
nothing that is measured concerns it.
`python benchmarks/agent.py [--rounds N] [--json] [--no-work]`.
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
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
WORK = {
    "shell loop": "for i in $(seq 40); do /bin/true; test -e /etc/passwd; done",
    "find /usr": "find /usr -newer /nonexistent 2>/dev/null; find /usr/share -size +10M >/dev/null",
    "ls -lR": "ls -lR /usr/include >/dev/null",
    "python3": "for i in 1 2 3 4 5; do python3 -c 'import json, subprocess'; done",
    "cc": "cd {scratch} && for i in 1 2 3; do cc -O1 -c guests.c -o guests.o; done",
    "tar": "tar cf {scratch}/t.tar /usr/include 2>/dev/null",
}


def prefixes(mount: str) -> dict[str, list[str]]:
    """The ways to run a command."""
    umvm = [sys.executable, "-m", "umvm", "run", "--mount", f"memory:none:{mount}", "--engine"]
    return {"native": [], "agent": [*umvm, "agent", "--"], "notify": [*umvm, "notify", "--"]}


def calls(prefix: list[str], program: str) -> dict[str, float]:
    """Nanoseconds per call, by name."""
    done = subprocess.run(
        [*prefix, program, "7"], check=True, capture_output=True, text=True, timeout=300
    )
    return {name: float(ns) for name, ns in (line.split() for line in done.stdout.splitlines())}


def work(prefix: list[str], script: str) -> float:
    """Nanoseconds that a shell script takes, measured inside, so without the start of the VM."""
    timed = f"s=$(date +%s%N); {{ {script}; }}; echo $(($(date +%s%N) - s)) >&3"
    with tempfile.TemporaryFile() as out:
        subprocess.run(
            [*prefix, "/bin/bash", "-c", f"exec 3>&1 >/dev/null; {timed}"],
            check=True, stdout=out, stderr=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip
        out.seek(0)
        return float(out.read())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-work", action="store_true")
    options = parser.parse_args()
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/agent_calls"
        subprocess.run(["cc", "-O2", "-o", program, HERE / "agent_calls.c"], check=True)
        shutil.copy(HERE / "guests.c", directory)
        os.mkdir(f"{directory}/mnt")
        ways = prefixes(f"{directory}/mnt")
        scripts = {} if options.no_work else WORK
        for script in scripts.values():  # so that all is analysed and in the page cache
            work(ways["agent"], script.format(scratch=directory) + "; sleep 2")
        calls(ways["agent"], program)
        time.sleep(2)
        for _ in range(options.rounds):
            for way, prefix in ways.items():
                for name, ns in calls(prefix, program).items():
                    times[name][way].append(ns)
        for _ in range(options.rounds):
            for name, script in scripts.items():
                for way, prefix in ways.items():
                    times[name][way].append(work(prefix, script.format(scratch=directory)))
    report(times, options.json)


def report(times: dict[str, dict[str, list[float]]], as_json: bool) -> None:
    """Print medians (ns) and ratios."""
    rows = []
    for name, ways in times.items():
        median = {way: statistics.median(values) for way, values in ways.items()}
        rows.append(
            {"what": name, **median, "agent ratio": median["agent"] / median["native"],
             "notify ratio": median["notify"] / median["native"]}
        )  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(
        f"{'what':14} {'native ns':>12} {'agent':>12} {'notify':>12} {'agent x':>8} {'notify x':>9}"
    )
    for row in rows:
        print(
            f"{row['what']:14} {row['native']:12.0f} {row['agent']:12.0f} {row['notify']:12.0f} "
            f"{row['agent ratio']:8.2f} {row['notify ratio']:9.2f}"
        )


if __name__ == "__main__":
    main()
