"""The state directory: the truth about jobs.

    lock                 held by the one supervisor that may use the directory
    instance             this agent's name among those on the host
    format               of what is stored here: the newest version's that has written here
    draining             there while no new jobs are taken
    cgroup_parent        where the jobs' cgroups are, in which boot of the host
    jobs/ID/job.json     the job's record
    jobs/ID/flushed.json the same as it was flushed last, see `Flusher`
    jobs/ID/work/        the job's own directory, owned by its user
    jobs/ID/logs/        where the job cannot write
    policy.json          the policy that was read last and was good
    limits.json          likewise the profiles and caps of limits
    totals.json          how many jobs were started, how they ended and so on
    quarantine/          what could not be read, with its name
    removed/ID.UID       what is left of a job that is being removed
    audit/               the audit trails

Files are written beside and renamed, so that a reader sees the old or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from jobworker import chain, codec
from jobworker.errors import HostFault, InvalidField, ProtocolError
from jobworker.jobs import EndReason, Idempotency, JobRecord, check_job_id, new_job_id
from jobworker.kernel import beneath
from jobworker.limits import NO_LIMITS, Limits

FORMAT = 8
FLUSHED = "flushed.json"
_MAX_RECORD = 2 * 1024 * 1024
# More bytes than a record grows by when its job runs: times and a process id, and limits as the kernel has them.
_GROWTH = 1024
# A process that a supervisor was making when it was killed holds the lock until it has closed what it inherited.
_LOCK_PATIENCE = 2.0
# Jobs' users must get through to their work directories, and see nothing on the way.
_PASS_THROUGH = 0o711


@dataclass(frozen=True, slots=True)
class StoredJob:
    """What job.json holds.

    Attributes:
        boot_id: of the host when this was written; another one means that nothing of it runs any more.
        started: on the monotonic clock of that boot, in seconds.
        stop_reason: why the job is being stopped, once it is.
        idempotency: what the job was started with.
        held_to: the limits that its group was given, as the kernel has rounded them.
        kill_at: when the job that is being stopped is killed, on the same clock as `started`.
        unsent: the signal that it may not have been sent yet.
    """

    format: int
    boot_id: str
    record: JobRecord
    started: float
    stop_reason: EndReason | None
    idempotency: Idempotency = field(default_factory=Idempotency)
    held_to: Limits = NO_LIMITS
    kill_at: float | None = None
    unsent: int | None = None


class Store:
    """Reads and writes the state directory; the only one who does."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        self.fd = os.open(self.path, beneath.OPEN_DIR)
        _set_mode(self.fd, _PASS_THROUGH)
        self.jobs_fd = self._make_dir("jobs", _PASS_THROUGH)
        self.removed_fd = self._make_dir("removed", 0o700)
        self._boot_id = _read_boot_id()

    def lock(self, *, wait: bool = False) -> None:
        """Be the one who writes here, from now on, or once the present one has ended.

        Raises:
            HostFault: another one is.
        """
        fd = self._open_lock()
        try:
            _flock(fd, 0 if wait else _LOCK_PATIENCE)
        except TimeoutError:
            os.close(fd)
            problem = f"another agent is using {self.path}; stop it, or give this one a directory of its own"
            raise HostFault("lock", "EWOULDBLOCK", problem) from None
        self._lock = fd

    def _open_lock(self) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open("lock", flags | os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self.fd)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # There may be jobs to be looked after all the same.
            return os.open("lock", flags | os.O_RDONLY, dir_fd=self.fd)

    def _make_dir(self, name: str, mode: int) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fd)
        fd = os.open(name, beneath.OPEN_DIR, dir_fd=self.fd)
        _set_mode(fd, mode)
        return fd

    def open_audit(self) -> int:
        """The directory of the audit trails, for the caller to keep; made if it is not there."""
        return self._make_dir(chain.DIRECTORY, 0o700)

    @property
    def epoch(self) -> str:
        """This agent, since the host's last boot."""
        return f"{self.instance()} {self._boot_id}"

    def instance(self) -> str:
        """The agent's name, made at its first start."""
        with contextlib.suppress(FileNotFoundError):
            if name := _read_file(self.fd, "instance").decode("ascii"):
                return check_job_id(name, "instance")
        name = new_job_id()
        _write_file(self.fd, "instance", name.encode("ascii"), flush=True)
        return name

    def check_format(self) -> None:
        """Refuse what is stored if this version is too old for it.

        Raises:
            HostFault: a later version has written here.
        """
        _check_format(self.fd)

    def mark_format(self) -> None:
        """Keep older versions from what this one writes."""
        if _read_format(self.fd) < FORMAT:
            # A disk that can't be written now will be the next time; nothing of this version is on it before.
            with contextlib.suppress(OSError):
                _write_file(self.fd, "format", str(FORMAT).encode("ascii"))

    @property
    def draining(self) -> bool:
        try:
            os.stat("draining", dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def set_draining(self, draining: bool) -> None:  # noqa: FBT001 - there is nothing else to say
        """Have later supervisors know of it. It is not flushed: a power cut soon after may undo it.

        Raises:
            OSError: it can't be written; nothing has changed.
        """
        if draining:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            os.close(os.open("draining", flags, 0o600, dir_fd=self.fd))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("draining", dir_fd=self.fd)

    def cgroup_parent(self) -> str:
        """What an earlier life had the jobs' cgroups below; empty if there was none in this boot of the host."""
        with contextlib.suppress(OSError, ProtocolError, UnicodeDecodeError):
            boot_id, _, parent = _read_file(self.fd, "cgroup_parent").decode().partition(" ")
            if boot_id == self._boot_id:
                return parent
        return ""

    def keep_cgroup_parent(self, parent: str) -> None:
        """Tell later lives; one without cgroups has nothing to tell."""
        if parent not in ("", self.cgroup_parent()):
            # On a disk that can't be written now, it is the next time.
            with contextlib.suppress(OSError):
                _write_file(self.fd, "cgroup_parent", f"{self._boot_id} {parent}".encode())

    def load_kept(self, name: str) -> bytes:
        """What `save_kept` was given; empty if it has not been."""
        with contextlib.suppress(FileNotFoundError):
            return _read_file(self.fd, f"{name}.json")
        return b""

    def save_kept(self, name: str, data: bytes) -> None:
        _write_file(self.fd, f"{name}.json", data)

    def create_job(self, job_id: str, owner: tuple[int, int] | None) -> None:
        """Make a job's directories; nothing is left of them when that fails.

        Args:
            job_id: whose.
            owner: user and group of its work directory; None for the agent's own.
        """
        try:
            self._create_job(job_id, owner)
        except OSError:
            self.discard_job(job_id)
            raise

    def _create_job(self, job_id: str, owner: tuple[int, int] | None) -> None:
        os.mkdir(job_id, 0o700, dir_fd=self.jobs_fd)
        for name in ("work", "logs"):
            os.mkdir(f"{job_id}/{name}", 0o700, dir_fd=self.jobs_fd)
        if owner is not None:
            os.chown(f"{job_id}/work", *owner, dir_fd=self.jobs_fd, follow_symlinks=False)
        os.chmod(job_id, _PASS_THROUGH, dir_fd=self.jobs_fd)

    def open_work(self, job_id: str) -> int:
        return self._open_dir(f"{job_id}/work")

    def open_logs(self, job_id: str) -> int:
        return self._open_dir(f"{job_id}/logs")

    def _open_dir(self, path: str) -> int:
        return beneath.open_directory(self.jobs_fd, path)

    @contextlib.contextmanager
    def _opened_dir(self, path: str) -> Iterator[int]:
        fd = self._open_dir(path)
        try:
            yield fd
        finally:
            os.close(fd)

    @property
    def jobs_path(self) -> str:
        return f"{self.path}/jobs"

    def work_path(self, job_id: str) -> str:
        return f"{self.jobs_path}/{job_id}/work"

    def log_path(self, job_id: str) -> str:
        return f"{self.jobs_path}/{job_id}/logs/job_{job_id}.log"

    def save(
        self,
        record: JobRecord,
        started: float,
        stop_reason: EndReason | None,
        idempotency: Idempotency,
        held_to: Limits = NO_LIMITS,
        kill_at: float | None = None,
        unsent: int | None = None,
    ) -> None:
        stored = StoredJob(
            FORMAT, self._boot_id, record, started, stop_reason, idempotency, held_to, kill_at, unsent
        )
        with self._opened_dir(record.job_id) as fd:
            _write_file(fd, "job.json", codec.dumps(stored))

    def reserve(self, record: JobRecord, held_to: Limits) -> None:
        """Have the room for what `save` is given next, which says little more than this; nothing is on record yet.

        Raises:
            OSError: the disk has none.
        """
        stored = StoredJob(FORMAT, self._boot_id, record, 0.0, None, held_to=held_to)
        with self._opened_dir(record.job_id) as fd:
            _write_beside(fd, "job.json", codec.dumps(stored) + b" " * _GROWTH)

    def discard_job(self, job_id: str) -> None:
        """Remove the directories of a job whose command was never executed, so that they hold our files only."""
        logs, names = f"{job_id}/logs", (f"job_{job_id}.log", f"job_{job_id}.idx")
        records = ("job.json", "job.json.new", FLUSHED, f"{FLUSHED}.new")
        files = (*(f"{job_id}/{name}" for name in records), *(f"{logs}/{name}" for name in names))
        for path in files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path, dir_fd=self.jobs_fd)
        for path in (logs, f"{job_id}/work", job_id):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(path, dir_fd=self.jobs_fd)

    def set_job_aside(self, job_id: str, uid: int) -> str:
        """Take an ended job's directory out of the jobs; what it is called among the removed ones."""
        name = f"{job_id}.{uid}"
        os.rename(job_id, name, src_dir_fd=self.jobs_fd, dst_dir_fd=self.removed_fd)
        return name

    def set_aside(self) -> frozenset[str]:
        """What stands among the removed jobs, with whatever else somebody has put there."""
        return frozenset(os.listdir(self.removed_fd))

    @staticmethod
    def is_set_aside(name: str) -> bool:
        """Whether a removed job may be called so."""
        job_id, _, uid = name.partition(".")
        try:
            check_job_id(job_id)
        except InvalidField:
            return False
        return uid.isascii() and uid.isdecimal()

    @staticmethod
    def user_of(name: str) -> int:
        """The user whose job it was that is among the removed ones."""
        return int(name.rpartition(".")[2])

    def load(self, job_id: str) -> StoredJob:
        """What is stored of a job; see the function `load`."""
        return load(self.jobs_fd, job_id)

    def is_flushed(self, job_id: str) -> bool:
        """Whether the record that a job has now is the one that was brought to the disk last."""
        try:
            now, flushed = (os.stat(f"{job_id}/{name}", dir_fd=self.jobs_fd) for name in ("job.json", FLUSHED))
            if now.st_ino != flushed.st_ino:
                _load(self.jobs_fd, job_id, "job.json")
        except FileNotFoundError:
            return False
        except ProtocolError:
            # What stands there is broken, and must not take the place of the one that is not.
            return True
        return now.st_ino == flushed.st_ino

    def is_of_this_boot(self, stored: StoredJob) -> bool:
        return stored.boot_id == self._boot_id

    def job_ids(self) -> list[str]:
        with os.scandir(self.jobs_fd) as entries:
            return sorted(entry.name for entry in entries)

    def quarantine(self, name: str) -> None:
        """Put a job's directory aside, for a person to look at."""
        fd = self._make_dir("quarantine", 0o700)
        try:
            os.rename(name, name, src_dir_fd=self.jobs_fd, dst_dir_fd=fd)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        finally:
            os.close(fd)


def _flock(fd: int, seconds: float) -> None:
    """Lock, or raise TimeoutError after a time that is not 0."""

    def give_up(_signum: int, _frame: object) -> NoReturn:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def load(jobs_fd: int, job_id: str) -> StoredJob:
    """Read a job's record.

    Raises:
        ProtocolError: it is broken.
        HostFault: a later version of the agent has written it.
        FileNotFoundError: there is none.
    """
    try:
        return _load(jobs_fd, job_id, "job.json")
    except ProtocolError:
        # The power was cut before it was flushed: it is empty, of zeros, or not whole.
        with contextlib.suppress(OSError, ProtocolError):
            return _load(jobs_fd, job_id, FLUSHED)
        raise


def _load(jobs_fd: int, job_id: str, name: str) -> StoredJob:
    plain = codec.parse(_read_file(jobs_fd, f"{job_id}/{name}"))
    found = plain.get("format") if type(plain) is dict else None
    if type(found) is int and found > FORMAT:
        problem = f"job {job_id} was written by a later version (format {found}, this one knows {FORMAT})"
        raise HostFault("reading the state", "EPROTO", f"{problem}; start that version")
    stored: StoredJob = codec.from_plain(StoredJob, plain)
    if stored.record.job_id != job_id:
        raise ProtocolError(f"the record in {job_id} is that of job {stored.record.job_id:.40}")
    return stored


def check(path: str) -> None:
    """Read the records as a start would, and touch nothing; broken ones do not matter here.

    Raises:
        HostFault: there is one that this version is too old for.
    """
    fd = os.open(path, beneath.OPEN_DIR)
    _check_format(fd)
    os.close(fd)
    jobs_fd = os.open(os.path.join(path, "jobs"), beneath.OPEN_DIR)
    for name in os.listdir(jobs_fd):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, ProtocolError):
            load(jobs_fd, name)
    os.close(jobs_fd)


def _read_format(directory_fd: int) -> int:
    """The format that a directory says it has; 0 where it says nothing that can be read."""
    with contextlib.suppress(OSError, ProtocolError, ValueError):
        return int(_read_file(directory_fd, "format"))
    return 0


def _check_format(directory_fd: int) -> None:
    if (found := _read_format(directory_fd)) > FORMAT:
        problem = f"it was written by a later version (format {found}, this one knows {FORMAT})"
        raise HostFault("reading the state", "EPROTO", f"{problem}; start that version")


def _set_mode(fd: int, mode: int) -> None:
    # A file system that has become read-only refuses also what changes nothing.
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def _read_boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _read_file(directory_fd: int, name: str) -> bytes:
    try:
        return beneath.read_regular(directory_fd, name, _MAX_RECORD)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ProtocolError(f"{name}: {error.strerror}") from None
        raise


def _write_file(directory_fd: int, name: str, data: bytes, *, flush: bool = False) -> None:
    beside = _write_beside(directory_fd, name, data, flush=flush)
    os.rename(beside, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)


def _write_beside(directory_fd: int, name: str, data: bytes, *, flush: bool = False) -> str:
    beside = f"{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(beside, flags, 0o600, dir_fd=directory_fd)
    try:
        # Over what is there, which is not given up before: a full disk may have no other room.
        written = os.write(fd, data)
        if os.fstat(fd).st_size > written:
            os.ftruncate(fd, written)
        if flush:
            os.fsync(fd)
    finally:
        os.close(fd)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    return beside
