"""Which files a process may use, whatever its user may; landlock(7)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from jobworker.kernel import syscalls

_NR_CREATE_RULESET = 444
_NR_ADD_RULE = 445
_NR_RESTRICT_SELF = 446
_VERSION = 1
_PATH_BENEATH = 1

# linux/landlock.h
_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_MAKE_CHAR = 1 << 6
_MAKE_BLOCK = 1 << 11
_IOCTL_DEV = 1 << 15
# How many rights each version of the interface knows, beginning with the first.
_RIGHTS = (13, 14, 15, 15, 16)
_READ = _EXECUTE | _READ_FILE | _READ_DIR


class _RulesetAttributes(ctypes.Structure):
    """struct landlock_ruleset_attr, its first version."""

    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def version() -> int:
    """Of the kernel's interface, from 1 on.

    Raises:
        OSError: it has none, or it is switched off.
    """
    return syscalls.call(_NR_CREATE_RULESET, "landlock_create_ruleset", None, 0, _VERSION)


def restrict(known: int, writable: Iterable[str]) -> None:
    """From now on read and execute everything, write below some directories, and use devices.

    Args:
        known: the `version`.
        writable: directories, relative to the working directory if not absolute; one that is not there is nothing.
    """
    everything = (1 << _RIGHTS[min(known, len(_RIGHTS)) - 1]) - 1
    attributes = _RulesetAttributes(everything)
    size = ctypes.sizeof(attributes)
    ruleset = syscalls.call(_NR_CREATE_RULESET, "landlock_create_ruleset", ctypes.byref(attributes), size, 0)
    try:
        _allow(ruleset, "/", _READ)
        _allow(ruleset, "/dev", everything & (_READ | _WRITE_FILE | _IOCTL_DEV))
        # Of itself, its names and its OOM score, for instance; the rest is not the job's user's to write.
        _allow(ruleset, "/proc", _READ | _WRITE_FILE)
        for path in writable:
            _allow(ruleset, path, everything & ~(_MAKE_CHAR | _MAKE_BLOCK))
        syscalls.call(_NR_RESTRICT_SELF, "landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = _PathBeneath(access, directory)
        syscalls.call(_NR_ADD_RULE, path, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(directory)
