"""What the service manager is told, and what it keeps for us: sd_notify(3), sd_pid_notify_with_fds(3).

A datagram to the socket that `NOTIFY_SOCKET` names; nobody listens where there is no such variable. Descriptors
that were stored with it come back when the service is started again, by `LISTEN_FDS` and `LISTEN_FDNAMES`
(sd_listen_fds(3)). Imports as little as it can, since the keeper loads it too.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket

_FIRST_FD = 3
# syslog(3)'s numbers for levels of a log.
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def connect() -> socket.socket | None:
    """A non-blocking socket to the service manager; None if none listens, or there is no descriptor for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return None
    with contextlib.suppress(OSError):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError:
            sock.close()
        else:
            return sock
    return None


def send(sock: socket.socket, *lines: str, fd: int | None = None) -> None:
    """Send assignments such as `READY=1`.

    Raises:
        BlockingIOError: the service manager does not keep up.
        OSError: it is gone.
    """
    ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    sock.sendmsg(["\n".join(lines).encode()], ancillary)


def tell(*lines: str) -> None:
    """Send assignments, if there is somebody who listens; never fails."""
    if sock := connect():
        with contextlib.suppress(OSError):
            send(sock, *lines)
        sock.close()


def reads_priorities() -> bool:
    """True if standard error is a stream to the journal, which takes `<N>` before a line for its priority.

    That is sd-daemon(3); how a process sees it, systemd.exec(5) on `JOURNAL_STREAM`.
    """
    with contextlib.suppress(OSError):
        where = os.fstat(2)
        return os.environ.get("JOURNAL_STREAM") == f"{where.st_dev}:{where.st_ino}"
    return False


def stored() -> dict[str, int]:
    """The descriptors that were stored, by name. To be called once: they are the caller's from then on."""
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    count = int(os.environ.pop("LISTEN_FDS", "0") or 0)
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return {}
    fds = range(_FIRST_FD, _FIRST_FD + count)
    for fd in fds:
        os.set_inheritable(fd, False)
    return dict(zip(names, fds, strict=True))
