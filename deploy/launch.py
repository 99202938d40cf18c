"""Becomes a role's process: `python -S launch.py PARENT NICE PROGRAM [ARGUMENT…]`.

Guarantee: the process dies when the one that started it dies, however that ends; on systems without PR_SET_PDEATHSIG it is an ordinary
child. Needs the standard library alone and replaces itself, so nothing of it stays behind.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, nice: int, command: list[str]) -> None:
    """Does not return."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"{parent} ended before its child began")
    os.nice(nice)
    os.execv(command[0], command)  # noqa: S606 - the supervisor's own command


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
