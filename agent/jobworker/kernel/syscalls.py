"""The system calls that Python's standard library lacks: one thin function each, raising OSError.

Through `syscall(2)` by number, since glibc wraps few of them; the numbers from 424 on are the same on every
architecture. The handle holds the GIL (PyDLL): a raw clone in a process without threads must not let go of
it. Functions are bound here, once, because a child right after clone pays 150 us for each first use.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)

_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_CLONE3 = 435
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437

# linux/sched.h
CLONE_PIDFD = 0x0000_1000
CLONE_CLEAR_SIGHAND = 0x1_0000_0000
CLONE_INTO_CGROUP = 0x2_0000_0000

# linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# linux/mount.h
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_MOUNT_ATTR_NOSUID_NODEV_NOEXEC = 0x02 | 0x04 | 0x08

# linux/openat2.h
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


def _checked(result: int, what: str) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), what)
    return result


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
    size = ctypes.c_size_t(ctypes.sizeof(args))
    pid = _checked(_syscall(ctypes.c_long(_NR_CLONE3), ctypes.byref(args), size), "clone3")
    return pid, pidfd.value


def close_range(first: int, last: int = 0xFFFF_FFFF) -> None:
    """close_range(2): close every descriptor from `first` to `last`."""
    number = ctypes.c_long(_NR_CLOSE_RANGE)
    _checked(_syscall(number, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0)), "close_range")


def openat2(directory_fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): open below a directory, with the kernel refusing what `resolve` forbids."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    number, size = ctypes.c_long(_NR_OPENAT2), ctypes.c_size_t(ctypes.sizeof(how))
    name = ctypes.c_char_p(os.fsencode(path))
    return _checked(_syscall(number, ctypes.c_int(directory_fd), name, ctypes.byref(how), size), path)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _checked(_prctl(option, value, 0, 0, 0), "prctl")


def detached_mount(kind: str) -> int:
    """Mount a file system that needs no device, at no place: fsopen, fsconfig, fsmount (Linux 5.2).

    Returns:
        An O_PATH descriptor of its root. Nobody else sees the mount, and it is gone when the last descriptor of
        something in it is.
    """
    nothing, cloexec = ctypes.c_void_p(), ctypes.c_uint(_FSOPEN_CLOEXEC)
    kind_name = ctypes.c_char_p(os.fsencode(kind))
    context = _checked(_syscall(ctypes.c_long(_NR_FSOPEN), kind_name, cloexec), kind)
    try:
        fd, create = ctypes.c_int(context), ctypes.c_uint(_FSCONFIG_CMD_CREATE)
        number = ctypes.c_long(_NR_FSCONFIG)
        _checked(_syscall(number, fd, create, nothing, nothing, ctypes.c_int(0)), kind)
        number, attributes = ctypes.c_long(_NR_FSMOUNT), ctypes.c_uint(_MOUNT_ATTR_NOSUID_NODEV_NOEXEC)
        return _checked(_syscall(number, fd, ctypes.c_uint(_FSMOUNT_CLOEXEC), attributes), kind)
    finally:
        os.close(context)
