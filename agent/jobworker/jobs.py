"""The vocabulary of jobs: ids, specifications, limits, states, records.

Frozen types that cross every boundary of the agent. Checks stand with the types, so that the gateway (for a
quick answer) and the root process (because it trusts nobody) apply the same ones.
"""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass

from jobworker import codec, units
from jobworker.errors import InvalidField
from jobworker.limits import NO_LIMITS, Limits, LimitStatus, check_limit_profile
from jobworker.sandbox import NOT_SANDBOXED, Applied, check_profile

# Crockford's base 32: no i, l, o, u, so that an id read aloud or off a screen comes back right.
_ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID = re.compile(rf"(?:[{_ID_ALPHABET}]{{4}}-){{3}}[{_ID_ALPHABET}]{{4}}")
_ID_PREFIX = re.compile(rf"[{_ID_ALPHABET}-]{{4,19}}")
ID_EXAMPLE = "k7f3-9m2q-x4tz-b1cd"

# execve(2): MAX_ARG_STRLEN, one string with its NUL.
MAX_STRING_BYTES = 131_072 - 1
# pipe(7): what every pipe takes without being read, so that a job's input is in its pipe before it is started.
MAX_STDIN_BYTES = 65_536
# All of a specification, as it is encoded, must fit one message between the agent's processes.
MAX_SPEC_BYTES = 256 * 1024
# A record has to fit a message as well, and this may be six bytes a character there.
MAX_PRINCIPAL = 4096
MAX_ARGS = 8_192
MAX_ENV = 1_024
MAX_LABELS = 32
MAX_KEY = 128
# Each id that a watch names is memory of the gateway, of which any reader may have many watches.
MAX_WATCHED = 200
MAX_LABEL_VALUE = 255
# That a stream may begin before the end of the output.
MAX_TAIL_LINES = 1_000_000
MAX_TIMEOUT_MS = 366 * 24 * 3600 * 1000
MAX_GRACE_MS = 3600 * 1000

# useradd(8), and names with a domain as they come from elsewhere.
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._@-]{0,31}")
# UUIDs and the like, trace ids, and what load balancers make.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")
REQUEST_ID_EXAMPLE = "deploy-2041-step-3"
_LABEL_KEY = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?")


def new_job_id() -> str:
    """A random id of 80 bits."""
    letters = "".join(_ID_ALPHABET[byte & 31] for byte in os.urandom(16))
    return "-".join(letters[i : i + 4] for i in range(0, 16, 4))


def check_job_id(text: str, field: str = "job_id") -> str:
    """Return `text` if it is a whole job id.

    Raises:
        InvalidField: it is not.
    """
    if not _ID.fullmatch(text):
        raise InvalidField(field, f"{text!r:.60} is not a job id", ID_EXAMPLE)
    return text


def check_job_id_prefix(text: str, field: str = "id_prefix") -> str:
    """Return `text` if it can be the beginning of a job id: four characters or more.

    Raises:
        InvalidField: it can't.
    """
    if not _ID_PREFIX.fullmatch(text):
        problem = f"{text!r:.60} is not the beginning of a job id (four characters or more)"
        raise InvalidField(field, problem, ID_EXAMPLE[:4])
    return text


def check_request_id(text: str, field: str) -> str:
    """Return `text` if it can name a request.

    Raises:
        InvalidField: it can't.
    """
    if not _REQUEST_ID.fullmatch(text):
        problem = "must be 1 to 128 letters, digits and characters of ._:+/=@-"
        raise InvalidField(field, problem, REQUEST_ID_EXAMPLE)
    return text


def check_principal(uri: str, field: str) -> str:
    """Return the URI if it is one that a job's record has room for.

    Raises:
        InvalidField: it isn't.
    """
    if len(uri) > MAX_PRINCIPAL:
        problem = f"has {len(uri)} characters, more than {MAX_PRINCIPAL}"
        raise InvalidField(field, problem, "spiffe://example.org/user/alice")
    return uri


def check_user(name: str) -> None:
    """Check what can be the name of a user, or is empty.

    Raises:
        InvalidField: it can't be.
    """
    if name and not _USER.fullmatch(name):
        raise InvalidField("user", f"{name!r:.60} is not the name of a user", "www-data")


class State(enum.Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    ENDED = "ENDED"


# Of a job that has not ended.
ACTIVE = (State.PENDING, State.RUNNING, State.STOPPING)


class EndReason(enum.Enum):
    EXITED = "EXITED"
    SIGNALED = "SIGNALED"
    OOM_KILLED = "OOM_KILLED"
    TIMED_OUT = "TIMED_OUT"
    STOPPED = "STOPPED"
    LOST = "LOST"


class Source(enum.IntEnum):
    """Which of the job's descriptors wrote a piece of output."""

    STDOUT = 1
    STDERR = 2


class OutputFormat(enum.IntEnum):
    """How a job's output is told: its bytes as they came, whole lines, or an object for each line."""

    BINARY = 1
    TEXT = 2
    JSON = 3


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a client wants to be run.

    Attributes:
        command: a path, or a name that is looked up in the PATH of `env` (or the default path).
        args: what follows the command's own name.
        env: the whole environment of the job, nothing is added.
        workdir: an absolute directory of the host, entered with the job's own rights; empty for a fresh
            directory of the job's own.
        timeout_ms: the job is stopped after this time; 0 for never.
        best_effort: start even though a limit that was asked for cannot be enforced here.
        sandbox: the profile of its isolation; empty for the agent's default.
        user: the name of the host's user that it runs as; empty for one that it has for itself alone.
        stdin: what it reads from its standard input, and nothing behind it unless that is `stdin_open`.
        profile: the name of the agent's profile of limits that fills in those that are not asked for here; empty
            for the default one.
        stdin_open: its standard input stays open for what is written to it later.
        merge_stderr: its standard error is the pipe of its standard output, which keeps the order of the two.
    """

    command: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    workdir: str = ""
    limits: Limits = NO_LIMITS
    timeout_ms: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    best_effort: bool = False
    sandbox: str = ""
    user: str = ""
    stdin: bytes = b""
    profile: str = ""
    stdin_open: bool = False
    merge_stderr: bool = False

    def check(self) -> None:
        """Check everything that can be checked without the host.

        Raises:
            InvalidField: the first field that is wrong.
        """
        if not self.command:
            raise InvalidField("command", "is empty", "/usr/bin/make")
        _check_string("command", self.command)
        self._check_args()
        self._check_env()
        self._check_workdir()
        self._check_labels()
        self.limits.check(alone=not self.profile)
        check_limit_profile(self.profile)
        check_profile(self.sandbox)
        check_user(self.user)
        if len(self.stdin) > MAX_STDIN_BYTES:
            problem = f"has more than {MAX_STDIN_BYTES} bytes"
            raise InvalidField("stdin", f"{problem}; start the job with stdin_open, and write the data then")
        units.check_range("timeout", self.timeout_ms, (0, MAX_TIMEOUT_MS), units.format_duration)
        size = len(codec.dumps(self))
        if size > MAX_SPEC_BYTES:
            problem = f"the job takes {size} bytes as a message, more than {MAX_SPEC_BYTES}"
            raise InvalidField("args", f"{problem}; put the data into a file")

    def _check_args(self) -> None:
        if len(self.args) > MAX_ARGS:
            raise InvalidField("args", f"has {len(self.args)} items, more than {MAX_ARGS}")
        for i, arg in enumerate(self.args):
            _check_string(f"args[{i}]", arg)

    def _check_env(self) -> None:
        if len(self.env) > MAX_ENV:
            raise InvalidField("env", f"has {len(self.env)} entries, more than {MAX_ENV}")
        for name, value in self.env:
            if not name or "=" in name or "\0" in name:
                raise InvalidField("env", f"{name!r:.60} is not a variable's name", "LANG=C.UTF-8")
            # The value may be a secret: the error names the variable alone.
            _check_string(f"env[{name[:60]}]", f"{name}={value}")

    def _check_workdir(self) -> None:
        _check_string("workdir", self.workdir)
        if self.workdir and not self.workdir.startswith("/"):
            raise InvalidField("workdir", f"{self.workdir!r:.60} is not an absolute path", "/srv/build")

    def _check_labels(self) -> None:
        if len(self.labels) > MAX_LABELS:
            raise InvalidField("labels", f"has {len(self.labels)} entries, more than {MAX_LABELS}")
        for key, value in self.labels:
            if not _LABEL_KEY.fullmatch(key):
                raise InvalidField("labels", f"{key!r:.80} is not a label's key", "team=build")
            if len(value) > MAX_LABEL_VALUE or not value.isprintable():
                problem = f"must be printable and at most {MAX_LABEL_VALUE} characters"
                raise InvalidField(f"labels[{key}]", problem, "team=build")


def _check_string(field: str, text: str) -> None:
    if "\0" in text:
        raise InvalidField(field, "holds a NUL byte, which no argument of a program can")
    try:
        size = len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise InvalidField(field, "is not text that can be encoded") from None
    if size > MAX_STRING_BYTES:
        problem = f"has {size} bytes, more than the {MAX_STRING_BYTES} that Linux takes"
        raise InvalidField(field, f"{problem}; put the data into a file")


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes a repeated start safe.

    Attributes:
        key: the client's; empty for none.
        digest: of the specification, the same for the same one, by a function that nobody can invert.
    """

    key: str = ""
    digest: str = ""

    def check(self) -> None:
        """Check the key.

        Raises:
            InvalidField: it is not one.
        """
        if len(self.key) > MAX_KEY or not self.key.isprintable():
            problem = f"must be printable and at most {MAX_KEY} characters"
            raise InvalidField("idempotency_key", problem, "deploy-2041-step-3")
        if len(self.digest) > MAX_KEY:
            raise InvalidField("idempotency_key", "has a digest that is none")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a job has used so far; what the host can't tell is 0.

    Attributes:
        cpu_usec: user and system time, in microseconds.
        memory_peak_bytes: the highest memory charge.
        oom_kills: processes of the job that the kernel killed for want of memory.
        throttled_usec: time for which the CPU limit held the job back, in microseconds.
        io_read_bytes: from all disks.
        io_written_bytes: to all disks.
        memory_bytes: charged to it now.
        processes: that it has now, threads included.
        cpu_stalled_usec: time for which a process of it waited for a CPU (PSI, "some"), in microseconds.
        memory_stalled_usec: likewise for memory.
        io_stalled_usec: likewise for a disk.
    """

    cpu_usec: int = 0
    memory_peak_bytes: int = 0
    oom_kills: int = 0
    throttled_usec: int = 0
    io_read_bytes: int = 0
    io_written_bytes: int = 0
    memory_bytes: int = 0
    processes: int = 0
    cpu_stalled_usec: int = 0
    memory_stalled_usec: int = 0
    io_stalled_usec: int = 0


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Everything that is known of a job, without what could be secret.

    Times are nanoseconds of Unix time, 0 for not yet. The values of the environment are not here: a reader
    must not learn a writer's secrets.

    Attributes:
        exit_code: of the main process, as soon as it has exited; the job ends when its whole tree has.
        signal: that ended the main process, e.g. 9.
        detail: of the end, in words, where there is more to say than the reason.
        stuck: the job was killed, but something of it does not go away.
        segment_bytes: the log's segment n holds the offsets from n times this.
        log_bytes: the offset behind the last byte of output.
        output_ended: no more output will come.
        lost_bytes: output that could not be written (a full disk, say): gaps in the log, which the index names.
        sandbox: what it is isolated by.
        limits_restored: how often limits were set again that somebody else had changed.
        revision: of its last change, in the order of all changes since the host's boot; 0 for before that.
        user: the name of the host's user that it runs as; empty where that user is its own.
        profile: of limits, that it was started with; empty for none.
        request_id: of the request that started it, by the gateway's word.
        stdin_open: its standard input can be written to.
        stdin_bytes: of its standard input, taken so far.
    """

    job_id: str
    principal: str
    command: str
    args: tuple[str, ...]
    env_names: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    workdir: str
    timeout_ms: int
    uid: int
    pid: int
    state: State
    created_ns: int
    started_ns: int = 0
    ended_ns: int = 0
    end_reason: EndReason | None = None
    exit_code: int | None = None
    signal: int | None = None
    detail: str = ""
    stuck: bool = False
    limits: tuple[LimitStatus, ...] = ()
    usage: Usage = Usage()
    log_path: str = ""
    segment_bytes: int = 0
    log_bytes: int = 0
    output_ended: bool = False
    lost_bytes: int = 0
    sandbox: Applied = NOT_SANDBOXED
    limits_restored: int = 0
    revision: int = 0
    user: str = ""
    profile: str = ""
    request_id: str = ""
    stdin_open: bool = False
    stdin_bytes: int = 0
