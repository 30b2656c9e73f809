"""A child process that does not outlive its parent, however the parent ends. On Linux; elsewhere a plain child.

A small command asks the kernel for a signal at the parent's death (PR_SET_PDEATHSIG) and then becomes the real one: no
code of ours runs between fork and exec in a process with threads. The kernel means the *thread* that forked: fork from
one that lives as long as the child shall.
"""

from __future__ import annotations

import os
import signal
import sys

#: argv: pid of the parent, number of the signal, then the command to become. 1 is PR_SET_PDEATHSIG; the check of the
#: parent closes the gap in which it died before the request was in force.
_BECOME = """\
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(int(sys.argv[2])))
except (OSError, AttributeError) as problem:
    print("cannot bind this process's life to its parent's:", problem, file=sys.stderr, flush=True)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent died first")
os.execv(sys.argv[3], sys.argv[3:])
"""


def bound_to_us(command: list[str], *, by: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command that becomes `command` (an absolute path first), and gets the signal `by` when we end."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), str(int(by)), *command]
