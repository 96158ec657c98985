"""The agent's settings: what there is, with defaults and meaning.

These frozen types are the single schema. `settings.load` makes them from YAML, in a process without
privileges; the agent's own processes read them back from canonical JSON by `read`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from jobworker import codec
from jobworker.identity import DEFAULT_ROLE_OID
from jobworker.sandbox import Profile

# In the state directory.
SOCKET_NAME = "supervisor.sock"
# No reader will take a larger file for the agent's settings.
MAX_SETTINGS_BYTES = 1024 * 1024
# The most jobs that have metrics of their own.
MAX_JOB_SERIES = 200
# What the gateway serves at once, of all principals together; no quota of one can be more.
MAX_STREAMS, MAX_CALLS = 2_000, 1_024


@dataclass(frozen=True, slots=True)
class CertificateSettings:
    """What certificates have to be, beside what TLS and the role demand.

    Attributes:
        key_types: of keys that are taken: `rsa`, `ecdsa`.
        min_rsa_bits: an RSA key has no fewer.
        min_ecdsa_bits: likewise.
        hashes: that a certificate may be signed with: `sha256`, `sha384`, `sha512`.
        client_usages: extended key usages that a client's certificate must have beside clientAuth: OIDs.
        agent_usages: likewise of the agent's own, which TLS lets be without any: OIDs, or `serverAuth`.
        max_client_life_ms: from a client's certificate's first to its last moment; 0 for no bound.
        max_agent_life_ms: likewise of the agent's own.
    """

    key_types: tuple[str, ...] = ("rsa",)
    min_rsa_bits: int = 4096
    min_ecdsa_bits: int = 256
    hashes: tuple[str, ...] = ("sha256", "sha384", "sha512")
    client_usages: tuple[str, ...] = ()
    agent_usages: tuple[str, ...] = ()
    max_client_life_ms: int = 0
    max_agent_life_ms: int = 0


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Who clients and the agent are: files in PEM form, which are taken as they are with each handshake.

    Attributes:
        ca: the CAs that clients are checked against.
        cert: the agent's own certificate, and the intermediates behind it.
        key: the key of that certificate.
        role_oid: the object identifier of the extension that a client's role stands in.
        crl: revocation lists, signed by the CAs; empty for none. With any, each client's issuer must have one.
        stale_crl: `refuse` clients when their issuer's list has ended, or `allow` those that it did not name.
        revoked: a text file with a serial number in hexadecimal a line, of clients or CAs; empty for none.
        certificates: what they have to be, see below.
    """

    ca: str
    cert: str
    key: str
    role_oid: str = DEFAULT_ROLE_OID
    crl: str = ""
    stale_crl: str = "refuse"
    revoked: str = ""
    certificates: CertificateSettings = CertificateSettings()


@dataclass(frozen=True, slots=True)
class JobSettings:
    """How jobs are run.

    Attributes:
        segment_bytes: a log segment is closed at exactly this size, 1G at most.
        default_pids: for a job that asks for no limit of its own.
        max_cpu_millis: the most that one job may ask for; 0 for all CPUs of the host.
        max_memory_bytes: the most that one job may ask for; 0 for all memory of the host.
        max_pids: the most processes and threads that one job may ask for.
        default_memory_bytes: for a job that asks for no limit of its own; 0 for none.
        max_jobs_memory_bytes: the most that the memory limits of all jobs that have not ended may be together;
            0 for no such bound. A job without a limit does not count.
        max_stdin_bytes: that may be written to a standard input which was started open; 0 for any number.
        max_active: jobs that have not ended, at any one time.
        open_files: a job's processes may have so many files open, and raise that to the agent's hard limit.
        compress_logs: closed segments are compressed (gzip), those of 1 GiB at most, beside all else.
        keep_log: bytes that each job's output may take of the disk, compressed or not; the newest is kept, by
            whole segments. 0 for any number.
        keep_logs: bytes that the output of all jobs may take of the disk, with their indexes; 0 for any number.
            The oldest ended jobs are removed; where running ones have more than half, these lose their oldest
            segments, and who has most loses first.
        keep_ended: how many ended jobs are kept; the oldest are removed with all their files.
        keep_records_bytes: how much memory the records of ended jobs may take, which may hold long arguments; then
            the oldest go. 0 for any number.
        keep_ms: how long ended jobs are kept; 0 for without end.
        first_uid: jobs get user ids from here on where the agent runs as root.
        uid_count: how many user ids there are from `first_uid` on.
        default_path: where a command without a slash is looked for when the job's environment has no PATH.
        cgroup_parent: the cgroup below which the jobs' cgroups are made, from the hierarchy's root; empty for
            the delegated cgroup of jobworker-jobs.service, or else the agent's own (v2), or else `/jobworker`. A
            change waits for a start without jobs.
        kill_wait_ms: a job whose cgroup is not empty this long after it was killed is reported as stuck.
    """

    segment_bytes: int = 5 * 1024 * 1024
    default_pids: int = 1024
    max_cpu_millis: int = 0
    max_memory_bytes: int = 0
    max_pids: int = 32_768
    default_memory_bytes: int = 0
    max_jobs_memory_bytes: int = 0
    max_stdin_bytes: int = 0
    max_active: int = 2_000
    open_files: int = 1024
    compress_logs: bool = False
    keep_log: int = 2 * 1024**3
    keep_logs: int = 20 * 1024**3
    keep_ended: int = 10_000
    keep_records_bytes: int = 256 * 1024**2
    keep_ms: int = 30 * 24 * 3600 * 1000
    first_uid: int = 1_900_000_000
    uid_count: int = 65_536
    default_path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    cgroup_parent: str = ""
    kill_wait_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    """What one principal may have; the agent's own bounds hold for all principals together.

    Attributes:
        streams: open Streams and Watches. All principals together have 2,000.
        calls: other calls that are under way; all together have 1,024. Stop, Signal and the agent's health are not
            among them: they have bounds of their own, so that they are answered beside any number of others.
        calls_per_second: so many calls, streams that are opened included; 0 for any number. Stop, Signal and
            health may be called as often again.
        calls_burst: so many at once, after a pause; at least those of a second.
        active_jobs: jobs that have not ended; 0 for no bound.
        jobs_memory_bytes: what the memory limits of those may be together; 0 for no bound. A job without a limit
            does not count.
    """

    streams: int = 1_500
    calls: int = 256
    calls_per_second: int = 2_000
    calls_burst: int = 4_000
    active_jobs: int = 0
    jobs_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class IsolationSettings:
    """What jobs are kept from.

    Attributes:
        default: the sandbox profile of a job that asks for none.
        missing: `refuse` a job if this host lacks a part of its sandbox, or `report` that with the job.
        writable: directories that stay writable to jobs, so far as their users may write there.
        host_for: principals that may take the profile `host`; `*` stands for any characters.
    """

    default: str = Profile.STANDARD.value
    missing: str = "refuse"
    writable: tuple[str, ...] = ()
    host_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where Prometheus may scrape.

    Attributes:
        listen: ADDRESS:PORT; empty for no metrics. Over TLS with the agent's own pair, for bearers of a client
            certificate of its CAs, whatever their role.
        plain_http: without TLS and for anyone who reaches the port; on a loopback address only.
        basic_auth_users: names, each with a hash by bcrypt (`htpasswd -nB NAME`), who get in with their passwords
            instead of a client certificate.
        job_series: so many running jobs, the oldest, have series of their own, with their ids as a label; 0 for
            none. Each is one more question to the supervisor with every scrape.
    """

    listen: str = ""
    plain_http: bool = False
    basic_auth_users: tuple[tuple[str, str], ...] = ()
    job_series: int = 0


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Where traces of calls are sent, by OpenTelemetry (`pip install 'jobworker[otel]'`).

    Attributes:
        endpoint: of a collector that takes OTLP over gRPC; `https`, or `http` on a loopback address. Empty for no
            traces. `OTEL_` variables in the gateway's environment say the rest: headers, say, and a CA.
        ratio_millis: of the calls whose clients do not trace, so many are traced; those of clients that do are
            traced where the client says so.
    """

    endpoint: str = ""
    ratio_millis: int = 1000


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The audit trails.

    Attributes:
        max_bytes: a file of a trail that has so many is closed, and another one begun.
        keep: so many closed files are kept of each trail, the newest.
        required: refuse to start a job when that can't be put on record first.
    """

    max_bytes: int = 32 * 1024 * 1024
    keep: int = 15
    required: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings.

    Attributes:
        state_dir: jobs, logs and the socket between the agent's processes.
        listen: ADDRESS:PORT for clients.
        log_level: debug, info, warning or error.
        gateway_uid: the user that may talk to the supervisor, besides the supervisor's own.
        policy: the policy file; empty for roles alone.
        limits: the file of limit profiles and caps; empty for none.
    """

    state_dir: str
    listen: str
    tls: TlsSettings
    jobs: JobSettings = JobSettings()
    quotas: QuotaSettings = QuotaSettings()
    isolation: IsolationSettings = IsolationSettings()
    metrics: MetricsSettings = MetricsSettings()
    audit: AuditSettings = AuditSettings()
    tracing: TracingSettings = TracingSettings()
    log_level: str = "info"
    gateway_uid: int = 0
    policy: str = ""
    limits: str = ""

    @property
    def socket_path(self) -> str:
        return os.path.join(self.state_dir, SOCKET_NAME)


def read(path: str) -> Settings:
    """Read canonical settings.

    Raises:
        ProtocolError: the file is not what `write` makes.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return codec.loads(Settings, file.read(MAX_SETTINGS_BYTES + 1))


def write(settings: Settings, path: str) -> None:
    """Write canonical settings, beside and renamed, so that a reader sees the old or the new ones."""
    beside = f"{path}.new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    with open(fd, "wb") as file:
        file.write(codec.dumps(settings))
    os.rename(beside, path)
