"""The directory of a process's own: nobody else's is touched while its owner lives, and none stays for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common.weights.workshop import Workshop

PROGRAM = """
import sys
from pathlib import Path
from common.weights.workshop import Workshop
workshop = Workshop(Path(sys.argv[1]))
print(workshop.finish(workshop.begin(), "version"), flush=True)
if sys.stdin.read(1) == "k":
    import os
    os.kill(os.getpid(), 9)
"""


def begun(root: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_goes_with_the_next_one_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    (killed, left), (living, used) = begun(tmp_path), begun(tmp_path)
    try:
        killed.communicate("k", timeout=60)
        assert left.is_dir()
        Workshop(tmp_path).begin()
        assert not left.parent.exists()
        assert used.is_dir()
        living.communicate("e", timeout=60)
        assert not used.parent.exists(), "a process that ends leaves nothing"
    finally:
        killed.kill()
        living.kill()


def test_the_newest_two_stay_and_a_name_is_there_once(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    paths = [workshop.finish(workshop.begin(), name) for name in ("a", "b", "b", "c")]
    assert [path.is_dir() for path in paths] == [False, True, True, True]
    workshop.drop(paths[3])
    workshop.drop(tmp_path / "of-somebody-else")
    assert not paths[3].exists()
    assert workshop.owns(paths[0])
    assert not workshop.owns(tmp_path)
