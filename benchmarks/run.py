"""All benchmarks, one after the other: `./dev bench [NAME…]`.

Names: start, calls, agent, fakeroot, realwork.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("start", "calls", "agent", "fakeroot", "realwork")


def main() -> None:
    """Run the named benchmarks, by default all; their options come after `--`."""
    arguments = sys.argv[1:]
    options = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    names = arguments[: arguments.index("--")] if "--" in arguments else arguments
    unknown = set(names) - set(NAMES)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in names or NAMES:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options], check=True)


if __name__ == "__main__":
    main()
