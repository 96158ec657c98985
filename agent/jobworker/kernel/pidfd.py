"""The pidfd of a child, and what one tells of a process that is nobody's child here.

The latter is PIDFD_GET_INFO (ioctl_pidfd(2), Linux 6.13). How a process ended is kept with its pidfd from Linux
6.15 on, also after its parent has reaped it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct

# linux/pidfd.h: mask, cgroup id, ten ids and ppid, exit code in the form of wait(2).
_INFO = struct.Struct("<QQ11Ii")
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_INFO_EXIT = 1 << 3


def of_child(pid: int) -> int:
    """The pidfd of a child that has just been made.

    Raises:
        OSError: there can be none; the child has been killed and reaped.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def end(pidfd: int) -> tuple[int, int] | None:
    """How a dead process ended, as si_code and si_status of waitid(2); None until its parent has reaped it.

    Raises:
        OSError: this kernel does not tell.
    """
    info = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    fcntl.ioctl(pidfd, _GET_INFO, info)
    mask, *_, status = _INFO.unpack(info)
    if not mask & _INFO_EXIT:
        return None
    if os.WIFSIGNALED(status):
        return os.CLD_KILLED, os.WTERMSIG(status)
    if os.WIFEXITED(status):
        return os.CLD_EXITED, os.WEXITSTATUS(status)
    raise OSError(errno.EPROTO, f"an exit status of {status:#x}")
