"""Becomes another program that ends when its parent does; run as a file, with the standard library only.

    python -I -S spawn.py SIGNAL PARENT_PID UID GID PROGRAM [ARGUMENT ...]

On Linux the kernel sends SIGNAL to the program when the parent dies, however it dies: a parent killed with SIGKILL
leaves no orphan. "The parent" is the thread that started this process, so that thread must live as long as the program
should (prctl(2), PR_SET_PDEATHSIG). Elsewhere nothing is sent. UID and GID of -1 keep the user that runs this.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    death_signal, parent, uid, gid = (int(a) for a in arguments[:4])
    program = arguments[4:]
    if uid >= 0:  # before prctl: a change of user clears the death signal
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:  # it died before the request above
            sys.exit("the process that asked for this one has ended")
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    os.execv(program[0], program)  # noqa: S606 - becoming the program is what this file is for


if __name__ == "__main__":
    main(sys.argv[1:])
