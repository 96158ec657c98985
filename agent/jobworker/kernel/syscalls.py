"""The system calls that Python's standard library lacks: one thin function each, raising OSError.

Through `syscall(2)` by number, since glibc wraps few of them; the numbers from 424 on are the same on every
architecture. The handle holds the GIL (PyDLL): a raw clone in a process without threads must not let go of
it. Functions are bound here, once, because a child right after clone pays 150 us for each first use.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_unshare = _libc.unshare
_setns = _libc.setns
_capset = _libc.capset
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_inotify_init1 = _libc.inotify_init1
_inotify_add_watch = _libc.inotify_add_watch
_inotify_rm_watch = _libc.inotify_rm_watch

_NR_CLONE3 = 435
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437

# linux/sched.h
CLONE_PIDFD = 0x0000_1000
CLONE_PARENT = 0x0000_8000
CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000
CLONE_CLEAR_SIGHAND = 0x1_0000_0000
CLONE_INTO_CGROUP = 0x2_0000_0000

# linux/falloc.h
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x01, 0x02

# linux/prctl.h
PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAPABILITY_WORDS = 6

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08


class _CloneArgs(ctypes.Structure):
    """struct clone_args, its second version (with `cgroup`): clone(2)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


class _OpenHow(ctypes.Structure):
    """struct open_how: openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def checked(result: int, what: str) -> int:
    """The result of a call of the C library.

    Raises:
        OSError: it is -1.
    """
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), what)
    return result


def call(number: int, what: str, *arguments: Any) -> int:
    """Make a system call; whole numbers go over as longs.

    Raises:
        OSError: it failed, at `what`.
    """
    words = (ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    return checked(_syscall(ctypes.c_long(number), *words), what)


def clone3(flags: int, exit_signal: int, cgroup_fd: int = 0) -> tuple[int, int]:
    """clone3(2) without CLONE_VM: like fork, returns twice.

    Returns:
        (0, -1) in the child, (its pid, its pidfd) in the parent; the pidfd is close-on-exec.
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(
        flags=flags | CLONE_PIDFD,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=exit_signal,
        cgroup=cgroup_fd,
    )
    pid = call(_NR_CLONE3, "clone3", ctypes.byref(args), ctypes.sizeof(args))
    return pid, pidfd.value


def close_range(first: int) -> None:
    """close_range(2): close every descriptor from `first` on."""
    call(_NR_CLOSE_RANGE, "close_range", first, 0xFFFF_FFFF, 0)


def openat2(directory_fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): open below a directory, with the kernel refusing what `resolve` forbids."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    name = os.fsencode(path)
    return call(_NR_OPENAT2, path, directory_fd, name, ctypes.byref(how), ctypes.sizeof(how))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """fallocate(2): have a file keep nothing of a range, which reads as zeros from then on."""
    checked(_fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length), "fallocate")


def prctl(option: int, value: int, more: int = 0) -> None:
    """prctl(2) with one or two arguments."""
    checked(_prctl(option, value, more, 0, 0), "prctl")


def set_name(name: str) -> None:
    """What ps and top call this process (prctl(2), PR_SET_NAME): up to 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode("ascii"))
    prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def unshare(flags: int) -> None:
    """unshare(2): go into new namespaces of these kinds."""
    checked(_unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2): go into the namespace of this kind that a descriptor stands for."""
    checked(_setns(fd, kind), "setns")


def inotify_init(flags: int) -> int:
    """inotify_init1(2)."""
    return checked(_inotify_init1(flags), "inotify_init1")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """inotify_add_watch(2): the watch's number."""
    return checked(_inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)), "inotify_add_watch")


def inotify_rm_watch(fd: int, watch: int) -> None:
    """inotify_rm_watch(2)."""
    checked(_inotify_rm_watch(fd, watch), "inotify_rm_watch")


def drop_capabilities() -> None:
    """capset(2): have no capability, and none to inherit."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    checked(_capset(header, (ctypes.c_uint32 * _CAPABILITY_WORDS)()), "capset")
