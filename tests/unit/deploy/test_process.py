import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.process import Exit, Process


def started(code: str, tmp_path: Path, nice: int = 0) -> Process:
    return Process.start([sys.executable, "-c", code], log=tmp_path / "logs" / "role.log", environment={"REFLUX_TEST": "1"}, nice=nice)


def ended(process: Process) -> Exit:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := process.poll():
            return found
        time.sleep(0.01)
    raise AssertionError("still running")


def test_the_end_of_a_process_has_its_code_its_last_line_and_its_cpu_seconds(tmp_path: Path) -> None:
    process = started("import sys\nsum(range(4_000_000))\nprint('first')\nsys.exit('the reason')", tmp_path)
    exit_ = ended(process)
    assert (exit_.code, exit_.reason) == (1, "the reason")
    assert exit_.cpu_s > 0.02


def test_the_reason_is_not_taken_from_an_earlier_life(tmp_path: Path) -> None:
    assert ended(started("print('earlier')", tmp_path)).reason == "earlier"
    assert ended(started("", tmp_path)).reason == "it said nothing"


def test_a_killed_process_names_the_signal(tmp_path: Path) -> None:
    process = started("import time; time.sleep(60)", tmp_path)
    process.send(signal.SIGKILL)
    assert ended(process) == Exit(-9, pytest.approx(0, abs=2), "killed by SIGKILL")
    process.send(signal.SIGTERM)  # nobody is hit


def test_environment_and_priority_reach_the_process(tmp_path: Path) -> None:
    code = "import os; print(os.environ['REFLUX_TEST'], os.nice(0))"
    assert ended(started(code, tmp_path, nice=7)).reason == f"1 {min(19, os.nice(0) + 7)}"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_role_dies_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from deploy.process import Process\n"
        "p = Process.start([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'], "
        "log=Path(sys.argv[1]) / 'x.log', environment={}, nice=0)\n"
        "time.sleep(0.5); print(p.pid, flush=True); time.sleep(60)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout
    child = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    deadline = time.monotonic() + 60
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(child)


def running(pid: int) -> bool:
    """A zombie that nobody reaps has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
