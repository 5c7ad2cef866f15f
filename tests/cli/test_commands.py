"""The umvm command against a real VM: what it prints, its exit statuses, its messages."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Result, Runner, wait_until

MODULE = '''"""Says hello."""
from umvm import Reply, SyscallClass

def umvm_start(vm, options):
    return [SyscallClass(("sethostname",), lambda request: Reply.value(0))]
'''


class Vm:
    """A VM in the background, named `bg`, whose first guest waits in `directory`."""

    def __init__(self, runner: Runner, directory: Path) -> None:
        self.directory = directory
        self._runner = runner
        self.process = runner.start_umvm("echo up; sleep 300", options=["--name", "bg"], stdout=-1)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    def __call__(self, *argv: str, **keywords: Any) -> Result:
        return self._runner.command(*argv, cwd=self.directory, **keywords)

    def json(self, *argv: str) -> Any:
        return json.loads(self(*argv, "--json").ok())


@pytest.fixture
def vm(runner: Runner, tmp_path: Path) -> Iterator[Vm]:
    (tmp_path / "mnt").mkdir()
    vm = Vm(runner, tmp_path)
    yield vm
    vm("kill", "bg")
    assert vm.process.wait(20) == 128 + signal.SIGKILL


def one_line(result: Result, status: int, text: str) -> None:
    """The command failed with this status and one line that holds `text`."""
    assert result.status == status, result
    assert result.stderr.startswith("umvm: ") and result.stderr.count("\n") == 1, result
    assert text in result.stderr
    assert result.stdout == ""


def test_listings(vm: Vm) -> None:
    (row,) = vm.json("ls")
    assert row["name"] == "bg" and row["pid"] == vm.process.pid
    assert vm("ls").ok().splitlines()[0].split() == ["NAME", "PID"]
    processes = vm.json("ps")
    assert {"sh", "sleep"} <= {row["comm"] for row in processes}
    assert all(row["pid"] > 0 and row["cwd"].startswith("/") for row in processes)
    assert vm("ps").ok().splitlines()[0].split()[:2] == ["PID", "PPID"]
    assert vm.json("mounts") == [] and vm.json("lsmod") == []
    assert len(vm("lsmod").ok().splitlines()) == 1


def test_mount_and_umount(vm: Vm) -> None:
    vm("mount", "-t", "memory", "-o", "size=1m", "none", "mnt").ok()
    (row,) = vm.json("mounts")
    assert (row["type"], row["source"]) == ("memory", "none")
    assert row["target"] == str(vm.directory / "mnt") and row["options"] == {"size": "1m"}
    assert [module["name"] for module in vm.json("lsmod")] == ["memory"]
    assert vm("exec", "bg", "sh", "-c", "echo hi >mnt/f; cat mnt/f").ok() == "hi\n"
    assert list((vm.directory / "mnt").iterdir()) == []
    one_line(vm("rmmod", "memory"), 16, "in use by 1 mount")
    vm("umount", "mnt").ok()
    one_line(vm("umount", "mnt"), 3, "not mounted")
    vm("rmmod", "memory").ok()
    assert vm.json("lsmod") == []


def test_umount_while_busy(vm: Vm, runner: Runner) -> None:
    vm("mount", "-t", "memory", "none", "mnt").ok()
    user = runner.start(
        [*runner.command_argv("exec", "bg"), "sh", "-c", "exec 3>mnt/f; echo open; sleep 300"],
        cwd=vm.directory,
        stdout=-1,
    )
    assert user.stdout is not None and user.stdout.readline() == b"open\n"
    one_line(vm("umount", "mnt"), 16, "1 open file")
    vm("umount", "--lazy", "mnt").ok()
    assert vm.json("mounts") == []


def test_mount_refused(vm: Vm) -> None:
    one_line(vm("mount", "-t", "memory", "none", "none"), 3, "No such file or directory")
    one_line(vm("mount", "-t", "nonesuch", "none", "mnt"), 3, "unknown file system type")
    one_line(vm("mount", "-t", "memory", "-o", "=x", "none", "mnt"), 2, "option without a name")
    one_line(vm("mount", "none", "mnt"), 2, "--type")
    (vm.directory / "file").touch()
    assert vm("mount", "-t", "memory", "none", "file").status == 20
    assert vm.json("mounts") == []


def test_modules_from_a_file(vm: Vm) -> None:
    source = vm.directory / "mine.py"
    source.write_text(MODULE)
    vm("insmod", "./mine.py").ok()
    (row,) = vm.json("lsmod")
    assert (row["name"], row["state"], row["doc"]) == ("mine", "live", "Says hello.")
    one_line(vm("insmod", "mine.py"), 17, "already loaded")
    source.write_text(MODULE.replace("hello", "goodbye"))
    vm("reload", "./mine.py").ok()
    assert vm.json("lsmod")[0]["doc"] == "Says goodbye."
    source.write_text("raise ValueError('broken')")
    vm("insmod", "-p", "memory").ok()
    one_line(vm("rmmod", "memory"), 16, "permanent")
    assert vm("exec", "bg", "hostname", "-b", "x").status in (0, 127)
    vm("rmmod", "mine").ok()
    one_line(vm("rmmod", "mine"), 3, "not loaded")


@pytest.mark.expect_log("failed to start")
def test_a_broken_module_is_refused(vm: Vm) -> None:
    (vm.directory / "bad.py").write_text("def umvm_start():\n    raise ValueError('why')\n")
    one_line(vm("insmod", "bad.py"), 1, "module bad: ValueError: why")
    assert vm.json("lsmod") == []


def test_exec(vm: Vm) -> None:
    assert vm("exec", "bg", "sh", "-c", "exit 7").status == 7
    assert vm("exec", "bg", "sh", "-c", "kill -TERM $$").status == 128 + 15
    one_line(vm("exec", "bg", "/no/such"), 127, "command not found")
    one_line(vm("exec", "other", "true"), 3, "no VM named other (running: bg)")
    told = vm("exec", "bg", "sh", "-c", 'echo "$UMVM_NAME"; umvm ps --json')
    assert told.ok().startswith("bg\n[")


def test_a_vm_by_pid(vm: Vm) -> None:
    (row,) = vm.json("ls")
    guest = next(process["pid"] for process in vm.json("ps") if process["comm"] == "sleep")
    for pid in (row["pid"], guest):
        assert vm("exec", str(pid), "echo", "in").ok() == "in\n"
        assert vm("lsmod", "--vm", str(pid)).status == 0
    one_line(vm("lsmod", "--vm", "1"), 3, "no VM named 1")


def test_several_vms(vm: Vm, runner: Runner) -> None:
    second = runner.start_umvm("echo up; sleep 300", options=["--name", "bg2"], stdout=-1)
    assert second.stdout is not None and second.stdout.readline() == b"up\n"
    assert [row["name"] for row in vm.json("ls")] == ["bg", "bg2"]
    one_line(vm("ps"), 3, "several VMs are running; name one with --vm (running: bg, bg2)")
    vm("ps", "--vm", "bg2").ok()
    one_line(vm("run", "--name", "bg", "true"), 17, "'bg' is running")
    vm("kill", "bg2").ok()
    second.wait(20)
    assert wait_until(lambda: [row["name"] for row in vm.json("ls")] == ["bg"])


def test_inside_the_vm_is_found(umvm_run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    result = umvm_run(
        f"cd {tmp_path} && umvm insmod memory && umvm mount -t memory none m && cd m"
        " && echo hi >f && umvm mounts && cd .. && umvm umount m && ls m && umvm ls"
    )
    assert str(tmp_path / "m") in result.ok() and "memory" in result.stdout


def test_run_options(runner: Runner, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    options = ["-m", "memory", "--mount", f"memory:none:{mnt}:size=1m", "-C", str(mnt)]
    options += ["-e", "GREETING=a=b", "--name", "opt"]
    result = runner.umvm('pwd; echo "$GREETING $UMVM_NAME"; umvm lsmod --json', options=options)
    directory, words, *listing = result.ok().splitlines()
    assert (directory, words) == (str(mnt), "a=b opt")
    assert json.loads("".join(listing))[0]["uses"] == 1


def test_run_without_a_command_runs_the_shell(runner: Runner) -> None:
    argv = runner.command_argv("run")
    result = runner.run(argv, input="echo from $0\n", env={"SHELL": "/bin/sh"})
    assert result.ok() == "from /bin/sh\n"


def test_settings_file_and_profile(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    text = f'name = "set"\nmounts = ["memory:none:{tmp_path}/mnt"]\n[env]\nX = "1"\nY = "1"\n'
    (tmp_path / "a.toml").write_text(text)
    folder = runner.home / ".config" / "umvm"
    folder.mkdir(parents=True)
    (folder / "web.toml").write_text(text)
    for option in (["--config", str(tmp_path / "a.toml")], ["--profile", "web"]):
        result = runner.umvm("umvm mounts; echo $UMVM_NAME $X $Y", options=[*option, "-e", "Y=2"])
        assert f"{tmp_path}/mnt" in result.ok() and result.stdout.endswith("set 1 2\n")
    both = runner.command("run", "--config", "a", "--profile", "b", "true")
    one_line(both, 2, "exclude each other")
    one_line(runner.command("run", "--profile", "none", "true"), 2, "none.toml: No such file")


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["run", "--nonsense", "true"], 2, "No such option"),
        (["run", "--name", "a/b", "true"], 2, "bad name"),
        (["run", "--mount", "memory", "true"], 2, "expected TYPE:SOURCE:TARGET"),
        (["run", "--mount", "memory:none:/no/such", "true"], 3, "/no/such: No such file"),
        (["run", "-m", "nonesuch", "true"], 3, "no module named 'nonesuch'"),
        (["run", "-C", "/no/such", "true"], 3, "/no/such: No such file"),
        (["run", "-e", "X", "true"], 2, "expected NAME=VALUE"),
        (["run", "no-such-program-here"], 127, "command not found"),
        (["run", "/etc/passwd"], 126, "Permission denied"),
        (["nonsense"], 2, "No such command"),
        (["exec", "x"], 2, "Missing argument"),
        (["ps"], 3, "no VM is running"),
        (["kill", "none"], 3, "no VM named none"),
        (["completion", "ksh"], 2, "ksh"),
    ],
)
def test_mistakes_are_one_line(runner: Runner, argv: list[str], status: int, text: str) -> None:
    one_line(runner.command(*argv), status, text)


def test_help_version_and_completion(runner: Runner) -> None:
    assert runner.command("--version").ok().startswith("umvm 0.")
    assert "Exit status" in runner.command("-h").ok()
    assert "--kill-on-exit" in runner.command("run", "--help").ok()
    for shell in ("bash", "zsh", "fish"):
        assert "_UMVM_COMPLETE" in runner.command("completion", shell).ok()
    words = {"COMP_WORDS": "umvm ins", "COMP_CWORD": "1", "_UMVM_COMPLETE": "bash_complete"}
    assert runner.run(runner.command_argv(), env=words).ok() == "plain,insmod\n"


def test_doctor(runner: Runner) -> None:
    rows = json.loads(runner.command("doctor", "--json").ok())
    assert {"name", "state", "reason"} == set(rows[0])
    inside = runner.umvm("umvm doctor")
    assert inside.status == 1 and "listener is there already" in inside.stdout


def test_output_to_a_closed_pipe(runner: Runner) -> None:
    command = " ".join(runner.command_argv("doctor"))
    result = runner.run(["bash", "-c", f"{{ {command}; echo $? >&2; }} | true"])
    assert result.stderr.strip() in ("0", "141")  # 0: it was faster
