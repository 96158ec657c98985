"""The one doorway to the files of a cgroup.

A directory is opened once and everything below it is named relative to that descriptor, so that a path which
changes meanwhile can't lead elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable

from jobworker.kernel import beneath

_CHUNK = 4096
# As many as are looked into or removed with one job: a crowd of them would hold up the others.
_MOST_BELOW = 512


class CgroupDir:
    """An open cgroup directory; owns its descriptor."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str) -> CgroupDir:
        return cls(os.open(path, beneath.OPEN_DIR), path)

    def child(self, name: str) -> CgroupDir:
        return CgroupDir(os.open(name, beneath.OPEN_DIR, dir_fd=self.fd), f"{self.path}/{name}")

    def make_child(self, name: str) -> CgroupDir:
        """Make the child cgroup unless it exists, and open it."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=self.fd)
        return self.child(name)

    def make_below(self, path: str, prepare: Callable[[CgroupDir, CgroupDir], None] | None = None) -> CgroupDir:
        """Open the cgroup at this path, making what is missing; `prepare` gets each parent and child of it."""
        directory = CgroupDir(os.dup(self.fd), self.path)
        for part in filter(None, path.split("/")):
            with contextlib.closing(directory) as parent, contextlib.ExitStack() as undo:
                child = undo.enter_context(contextlib.closing(parent.make_child(part)))
                if prepare:
                    prepare(parent, child)
                undo.pop_all()
            directory = child
        return directory

    def remove_child(self, name: str) -> None:
        """Remove a child cgroup without processes, with those that a job has made in it; one that is gone is fine.

        Raises:
            OSError: there are processes in it, or more cgroups than are looked for at a time.
        """
        with contextlib.suppress(FileNotFoundError):
            try:
                os.rmdir(name, dir_fd=self.fd)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                with contextlib.closing(self.inside(name)) as child:
                    child.remove_below()
                os.rmdir(name, dir_fd=self.fd)

    def remove_below(self) -> None:
        """Remove the cgroups below this one, as far as they have no processes."""
        for path in reversed(self.below()):
            with contextlib.suppress(OSError):
                os.rmdir(path, dir_fd=self.fd)

    def below(self) -> list[str]:
        """The paths of the cgroups below this one, parents first; of a crowd only the first."""
        found, looked_into = self._children("."), 0
        while looked_into < len(found) < _MOST_BELOW:
            # One that is gone, or that somebody has mounted something on.
            with contextlib.suppress(OSError):
                found += self._children(found[looked_into])
            looked_into += 1
        return found[:_MOST_BELOW]

    def _children(self, path: str) -> list[str]:
        with contextlib.closing(self.inside(path)) as directory, os.scandir(directory.fd) as entries:
            names = (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            return [f"{path}/{name}" for name in itertools.islice(names, _MOST_BELOW)]

    def inside(self, path: str) -> CgroupDir:
        """Open a cgroup at or below this one.

        Raises:
            OSError: there is none, or somebody has mounted something there (EXDEV).
        """
        return CgroupDir(beneath.open_unmounted(self.fd, path), f"{self.path}/{path}")

    def children(self) -> list[str]:
        with os.scandir(self.fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def has(self, name: str) -> bool:
        return os.access(name, os.F_OK, dir_fd=self.fd)

    def read(self, name: str) -> str:
        # Not open(): a buffered text file costs six more system calls, and a start reads five of these.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            # Whole lines come, so that a piece which is not full is not the last one (Linux, fs/seq_file.c).
            data = b"".join(iter(lambda: os.read(fd, _CHUNK), b""))
        finally:
            os.close(fd)
        return data.decode("ascii")

    def read_if_there(self, name: str, absent: str) -> str:
        """The file without its last line break; `absent` where the kernel does not have it.

        Raises:
            OSError: it can't be read, or the cgroup itself is gone.
        """
        try:
            return self.read(name).strip()
        except FileNotFoundError:
            # Which each cgroup has.
            if not self.has("cgroup.procs"):
                raise
            return absent

    def write(self, name: str, value: str) -> None:
        """Write a value; the kernel's refusal comes as an OSError that names the file."""
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            os.write(fd, value.encode("ascii"))
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{self.path}/{name}") from None
        finally:
            os.close(fd)

    def read_keyed(self, name: str) -> dict[str, int]:
        """A "flat keyed" file (Documentation/admin-guide/cgroup-v2.rst), e.g. memory.events; empty if absent."""
        pairs = (line.split() for line in self.read_if_there(name, "").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}  # noqa: PLR2004 - a pair

    def pids(self) -> list[int]:
        """The processes in this cgroup, not those in its children."""
        return [int(line) for line in self.read("cgroup.procs").split()]

    def close(self) -> None:
        os.close(self.fd)


class Base:
    """Where the agent has its groups in one hierarchy.

    Attributes:
        dir: it, open.
    """

    def __init__(self, make: Callable[[], CgroupDir]) -> None:
        """Make it.

        Args:
            make: opens it, and makes what is missing of it.
        """
        self._make = make
        self.dir = make()

    def make_child(self, name: str) -> CgroupDir:
        """Make the child cgroup unless it exists, and open it."""
        try:
            return self.dir.make_child(name)
        except FileNotFoundError:
            self._make_again()
            return self.dir.make_child(name)

    def read(self, name: str) -> str:
        """A file's text without its last line break."""
        try:
            return self.dir.read(name).strip()
        except FileNotFoundError:
            self._make_again()
            return self.dir.read(name).strip()

    def _make_again(self) -> None:
        # It was empty. With cgroup v1 systemd removes such cgroups of a controller that no unit has need of.
        gone, self.dir = self.dir, self._make()
        gone.close()
