"""Which system calls a job may not make, as a filter that is made ahead of time; seccomp(2).

libseccomp knows the numbers of each architecture and makes the program (seccomp_export_bpf(3)); a job's process
only loads it. The list denies rather than allows: a job is any program at all, and is to fail at what it has no
business with, not at what this list has not heard of.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator

from jobworker.kernel import syscalls

_LIBRARY = "libseccomp.so.2"

# seccomp.h of libseccomp 2.4 and later.
_ALLOW = 0x7FFF_0000
_ERRNO = 0x0005_0000
_ON_BAD_ARCHITECTURE = 2
_EQUAL, _GREATER, _MASKED_EQUAL = 4, 6, 7
_UNKNOWN_CALL = -1
# The 32-bit architecture that a 64-bit kernel runs as well.
_ALSO = {0xC000_003E: 0x4000_0003, 0xC000_00B7: 0x4000_0028}

_MODE_FILTER = 2
_INSTRUCTION_BYTES = 8

# What changes the host, reaches into it, or has been a way out of containers; all of it fails with EPERM.
_DENIED = [
    "acct",
    "add_key",
    "bpf",
    "clock_settime",
    "clock_settime64",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "umount",
    "umount2",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
]

_NEW_NAMESPACES = (
    syscalls.CLONE_NEWNS,
    syscalls.CLONE_NEWCGROUP,
    syscalls.CLONE_NEWUTS,
    syscalls.CLONE_NEWIPC,
    syscalls.CLONE_NEWUSER,
    syscalls.CLONE_NEWPID,
    syscalls.CLONE_NEWNET,
)
# Input into a terminal that others read: ioctl_tty(2), TIOCSTI and TIOCLINUX.
_TERMINAL_INPUT = (0x5412, 0x541C)
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class Filter:
    """A program that is ready to be loaded."""

    def __init__(self, code: bytes) -> None:
        self._program = _Program(len(code) // _INSTRUCTION_BYTES, code)
        self._address = ctypes.addressof(self._program)

    def load(self) -> None:
        """Put this process, and all that it becomes and starts, under the filter."""
        syscalls.prctl(syscalls.PR_SET_SECCOMP, _MODE_FILTER, self._address)


def make() -> bytes:
    """The filter's program.

    Raises:
        OSError: this host has no libseccomp, or it does not do it.
    """
    library = ctypes.CDLL(_LIBRARY)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))
    if not context.value:
        raise OSError(errno.ENOMEM, "seccomp_init", _LIBRARY)
    try:
        _done(library.seccomp_attr_set(context, _ON_BAD_ARCHITECTURE, ctypes.c_uint32(_ERRNO | errno.ENOSYS)))
        # x32, with numbers of its own, is no architecture that is added here: libseccomp refuses its calls.
        native = library.seccomp_arch_native() & 0xFFFF_FFFF
        if native in _ALSO:
            _done(library.seccomp_arch_add(context, ctypes.c_uint32(_ALSO[native])))
        for name, answer, comparison in _rules():
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number != _UNKNOWN_CALL:
                _add(library, context, number, answer, comparison)
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _rules() -> Iterator[tuple[str, int, _Comparison | None]]:
    """A call, the error it fails with, and when; always without a comparison."""
    for name in _DENIED:
        yield name, errno.EPERM, None
    for flag in _NEW_NAMESPACES:
        for name in ("clone", "unshare"):
            yield name, errno.EPERM, _Comparison(0, _MASKED_EQUAL, flag, flag)
    # In clone(2) this bit is the exit signal's.
    yield "unshare", errno.EPERM, _Comparison(0, _MASKED_EQUAL, syscalls.CLONE_NEWTIME, syscalls.CLONE_NEWTIME)
    # Whose parent would be the agent, which knows nothing of it: nobody would reap it.
    yield "clone", errno.EPERM, _Comparison(0, _MASKED_EQUAL, syscalls.CLONE_PARENT, syscalls.CLONE_PARENT)
    # Its flags are in memory, where no filter can look. The C library takes clone then.
    yield "clone3", errno.ENOSYS, None
    for request in _TERMINAL_INPUT:
        yield "ioctl", errno.EPERM, _Comparison(1, _MASKED_EQUAL, 0xFFFF_FFFF, request)
    # The kernel loads modules for the others. To it a family is an int, and libseccomp compares 64 bits: what is
    # set above the int is greater. A 32-bit program's socketcall(2) has its arguments in memory, where no filter
    # looks: libseccomp leaves the comparison out, so that such a program gets no socket rather than any.
    for name in ("socket", "socketpair"):
        for family in set(range(max(_FAMILIES))) - set(_FAMILIES):
            yield name, errno.EAFNOSUPPORT, _Comparison(0, _EQUAL, family, 0)
        yield name, errno.EAFNOSUPPORT, _Comparison(0, _GREATER, max(_FAMILIES), 0)


def _add(
    library: ctypes.CDLL, context: ctypes.c_void_p, number: int, answer: int, comparison: _Comparison | None
) -> None:
    count, first = (0, None) if comparison is None else (1, ctypes.byref(comparison))
    action = ctypes.c_uint32(_ERRNO | answer)
    _done(library.seccomp_rule_add_array(context, action, number, ctypes.c_uint(count), first))


def _exported(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _done(library.seccomp_export_bpf(context, fd))
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _done(result: int) -> None:
    """Raises OSError where the result, a negated error number, is not 0."""
    if result:
        raise OSError(-result, os.strerror(-result), _LIBRARY)
