"""Where pairs lie: NAME.pem and NAME.key in one directory, each seen old or new, never half.

Keys are never readable by others, whatever the umask. Names are resolved in the open directory, so that
nobody can slip another one in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from jobworker.errors import PkiProblem
from jobworker.unreadable import UNREADABLE
from jobworker_pki import authority, keys
from jobworker_pki.authority import Pair
from jobworker_pki.keys import Ask

# No certificate or key comes near this.
_MAX_BYTES = 256 * 1024
KEY_MODE, PUBLIC_MODE = 0o600, 0o644
_DIRECTORY_MODE, _PARENT_MODE = 0o700, 0o755


@dataclass(frozen=True, slots=True)
class Store:
    """An open directory of pairs, locked against other writers."""

    path: str
    fd: int

    def path_of(self, file: str) -> str:
        return os.path.join(self.path, file)

    def holds(self, file: str) -> bool:
        return file in os.listdir(self.fd)

    def names(self) -> list[str]:
        """What is in it, but for what was not written to its end."""
        return sorted(name for name in os.listdir(self.fd) if not (name.startswith(".") and name.endswith(".new")))

    def close_to_others(self) -> None:
        """Have it as if it had been made here."""
        os.fchmod(self.fd, _DIRECTORY_MODE)

    def read(self, name: str, ask: Ask | None = None) -> Pair | None:
        """A pair; None if one of its files is missing. `ask` is called if the key is encrypted.

        Raises:
            PkiProblem: a file is not what its name says, or others can read the key.
            OSError: it cannot be read.
        """
        if not (self.holds(f"{name}.pem") and self.holds(f"{name}.key")):
            return None
        return Pair(self.certificate(f"{name}.pem"), self.key(f"{name}.key", ask))

    def write(
        self, name: str, pair: Pair, *, passphrase: bytes | None = None, chain: tuple[x509.Certificate, ...] = ()
    ) -> None:
        """Put a pair in place of what is there; a pair that is written in part reads as missing.

        Raises:
            OSError: the disk does not take it.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{name}.pem", dir_fd=self.fd)
        self.put(f"{name}.key", keys.pem(pair.key, passphrase), KEY_MODE)
        self.put(f"{name}.pem", authority.pem(pair.certificate, *chain))

    def certificate(self, file: str) -> x509.Certificate:
        """The first certificate in a file.

        Raises:
            PkiProblem: it holds none.
            OSError: it cannot be read.
        """
        try:
            return x509.load_pem_x509_certificate(self.content(file))
        except UNREADABLE:
            raise PkiProblem(self.path_of(file), "holds no certificate in PEM form") from None

    def key(self, file: str, ask: Ask | None = None) -> rsa.RSAPrivateKey:
        """A private key that nobody else can read; see `read`."""
        content, mode = self._content(file)
        if mode & ~KEY_MODE:
            raise PkiProblem(self.path_of(file), "can be read by others", f"chmod 600 {self.path_of(file)}")
        return keys.load(self.path_of(file), content, ask)

    def content(self, file: str) -> bytes:
        """The bytes of a file.

        Raises:
            OSError: it cannot be read.
        """
        return self._content(file)[0]

    def put(self, file: str, content: bytes, mode: int = PUBLIC_MODE) -> None:
        """Put a file in place of what is there, at once and lastingly.

        Raises:
            OSError: the disk does not take it.
        """
        self._replace(file, content, mode)
        os.fsync(self.fd)

    def remove(self, file: str) -> None:
        """Remove a file, lastingly.

        Raises:
            OSError: it cannot be removed.
        """
        os.unlink(file, dir_fd=self.fd)
        os.fsync(self.fd)

    def _content(self, file: str) -> tuple[bytes, int]:
        # Non-blocking, or a FIFO by that name would hold us up for ever.
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        with open(fd, "rb") as stream:
            return stream.read(_MAX_BYTES), stat.S_IMODE(os.fstat(fd).st_mode)

    def _replace(self, file: str, content: bytes, mode: int) -> None:
        beside = f".{file}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside, dir_fd=self.fd)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=self.fd)
        with open(fd, "wb") as stream:
            os.fchmod(fd, mode)
            stream.write(content)
            stream.flush()
            os.fsync(fd)
        os.rename(beside, file, src_dir_fd=self.fd, dst_dir_fd=self.fd)


@contextlib.contextmanager
def opened(path: str) -> Iterator[Store]:
    """The store at `path`, made if it is not there, held alone until the end of the `with`.

    Raises:
        PkiProblem: the directory or a file in it cannot be used.
    """
    with reported(os.path.abspath(path)):
        _make(os.path.abspath(path), _DIRECTORY_MODE)
    with existing(path) as store:
        yield store


@contextlib.contextmanager
def existing(path: str) -> Iterator[Store]:
    """As `opened`, for a directory that must be there."""
    path = os.path.abspath(path)
    with reported(path):
        fd = _directory(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield Store(path, fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def reported(path: str) -> Iterator[None]:
    """Have what the system says of a file in the directory at `path` raised as a PkiProblem."""
    try:
        yield
    except OSError as error:
        where = os.path.join(path, error.filename) if isinstance(error.filename, str) else path
        raise PkiProblem(where, f"cannot be used: {error.strerror}") from None


def _directory(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(fd)
        raise PkiProblem(path, "can be changed by other users", "take a directory that only you can write to")
    return fd


def _make(path: str, mode: int) -> None:
    if not os.path.isdir(path):
        _make(os.path.dirname(path), _PARENT_MODE)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode)
            if mode == _DIRECTORY_MODE:
                os.chmod(path, mode)  # an umask may have taken the owner's rights
