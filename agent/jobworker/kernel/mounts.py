"""Mounts by descriptor: fsopen(2), open_tree(2), move_mount(2). A path is one without links, whoever may turn it.

A mount of this kind is at no place until it is attached to one; nobody else sees it, and it is gone when the last
descriptor of something in it is.
"""

from __future__ import annotations

import ctypes
import os

from jobworker.kernel import syscalls

_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_MOUNT_SETATTR = 442

# linux/mount.h
READ_ONLY = 0x01
NOSUID = 0x02
NODEV = 0x04
NOEXEC = 0x08
_CLOEXEC = 1
_SET_STRING, _CREATE = 1, 6
_OPEN_TREE_CLONE = 1
_FROM_EMPTY_PATH, _TO_EMPTY_PATH = 0x04, 0x40
_MS_PRIVATE = 1 << 18
# linux/fcntl.h
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000


class _Attributes(ctypes.Structure):
    """struct mount_attr: mount_setattr(2)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def detached(kind: str, attributes: int, **options: str) -> int:
    """Mount a file system that needs no device (Linux 5.2).

    Returns:
        An O_PATH descriptor of its root.
    """
    context = syscalls.call(_NR_FSOPEN, kind, kind.encode(), _CLOEXEC)
    try:
        for name, value in options.items():
            syscalls.call(_NR_FSCONFIG, f"{kind} {name}", context, _SET_STRING, name.encode(), value.encode(), 0)
        syscalls.call(_NR_FSCONFIG, kind, context, _CREATE, None, None, 0)
        return syscalls.call(_NR_FSMOUNT, kind, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def clone(path: str, *, attributes: int) -> int:
    """What is mounted at a path, itself and everything below it, once more, and private (Linux 5.12).

    Returns:
        An O_PATH descriptor of its root.
    """
    place = _opened(path)
    try:
        flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE | _AT_EMPTY_PATH
        tree = syscalls.call(_NR_OPEN_TREE, path, place, b"", flags)
    finally:
        os.close(place)
    # Or what is attached below it would appear where it was cloned from.
    _set(tree, "", attributes, _MS_PRIVATE)
    return tree


def attach(tree: int, path: str) -> None:
    """Put a mount over a path."""
    place = _opened(path)
    try:
        syscalls.call(_NR_MOVE_MOUNT, path, tree, b"", place, b"", _FROM_EMPTY_PATH | _TO_EMPTY_PATH)
    finally:
        os.close(place)


def _opened(path: str) -> int:
    """A directory by its real path: of what jobs may write they can make a link at any time."""
    return syscalls.openat2(_AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)


def restrict_all(attributes: int) -> None:
    """Give all mounts of this namespace these attributes, and let no mount in or out from now on (Linux 5.12)."""
    _set(_AT_FDCWD, "/", attributes, _MS_PRIVATE)


def _set(directory: int, path: str, attributes: int, propagation: int) -> None:
    flags = _AT_RECURSIVE | (0 if path else _AT_EMPTY_PATH)
    made = _Attributes(attr_set=attributes, propagation=propagation)
    size = ctypes.sizeof(made)
    what = path or "mount_setattr"
    syscalls.call(_NR_MOUNT_SETATTR, what, directory, path.encode(), flags, ctypes.byref(made), size)
