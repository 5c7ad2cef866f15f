"""CPython's own tests, where the system's Python has them: what passes on the host passes in a VM."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from harness import Place, Result, Runner

PYTHON = "/usr/bin/python3"
GROUPS = {
    "os": "test_os",
    "files": "test_posix test_posixpath test_genericpath test_stat test_mmap test_fileio test_file "
    "test_fileinput test_tempfile test_shutil test_glob",
    "paths": "test_pathlib",
    "archives": "test_tarfile",
    "modules": "test_zipimport test_runpy test_py_compile test_cmd_line_script test_import",
    "databases": "test_dbm_dumb test_dbm_ndbm test_dbm_gnu test_shelve test_sqlite3",
    "waiting": "test_select test_epoll test_pty test_openpty test_popen test_eintr test_threadsignals",
    "sockets": "test_socket -m *Unix* -m *SCM* -m *RecvmsgUDPTest* -m *Linux*",
    "processes": "test_subprocess -m POSIXProcessTestCase -m *ProcessTestCaseNoPoll*",
}
FAILED = re.compile(r"^(?:FAIL|ERROR): (.*)$", re.MULTILINE)
RAN = re.compile(r"^Ran \d+ tests?", re.MULTILINE)


@pytest.fixture(scope="module")
def own_tests() -> None:
    """Skip if the tests of Python aren't installed."""
    has = subprocess.run(
        [PYTHON, "-c", "import test.libregrtest as t; open(t.__path__[0] + '/../test_posix.py')"],
        capture_output=True,
        check=False,
        timeout=20,
    )
    if has.returncode:
        pytest.skip("the system's Python has no tests: libpython3-testsuite")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("own_tests")
@pytest.mark.parametrize("group", GROUPS)
def test_group(runner: Runner, tmp_path: Path, group: str) -> None:
    # -B and no colour: nothing but the tests' own files is made
    argv = [PYTHON, "-B", "-m", "test", "-v", *GROUPS[group].split()]
    results: dict[str, Result] = {}
    for kind in ("native", "vm"):
        place = Place(kind, runner, tmp_path / kind)
        env = {"TMPDIR": str(place.directory)}
        results[kind] = place.run(argv, env=env, timeout=50)
    failed = {kind: set(FAILED.findall(result.stdout)) for kind, result in results.items()}
    assert failed["vm"] - failed["native"] == set(), results["vm"].stdout[-20000:]
    ran = {kind: RAN.findall(r.stdout + r.stderr) for kind, r in results.items()}
    assert len(ran["vm"]) == len(ran["native"]) > 0, results
    assert results["vm"].status == results["native"].status or failed["native"], results["vm"]
