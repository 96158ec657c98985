"""The agent's configuration file: YAML to settings, strictly.

Runs in a process of its own without privileges (`worker-agent config`): no YAML parser reaches the others.
The file has the names of the schema, with sizes, shares and durations as people write them.
Here is what each may be, and what goes together; `sections` goes through the file.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from jobworker import identity, limits, units
from jobworker.errors import InvalidField
from jobworker.limits import PIDS_RANGE
from jobworker.sandbox import PROFILES
from jobworker.settings import sections, yaml_reader
from jobworker.settings.schema import (
    MAX_CALLS,
    MAX_JOB_SERIES,
    MAX_SETTINGS_BYTES,
    MAX_STREAMS,
    CertificateSettings,
    Settings,
    TlsSettings,
)
from jobworker.settings.sections import Parse, Table
from jobworker.settings.yaml_reader import Reader

# What jobs must not share.
_SPECIAL = ("/tmp", "/var/tmp", "/dev/shm", "/proc")  # noqa: S108 - the names that are replaced

# Many times the longest line; and what can still be looked at.
_MAX_SEGMENT_BYTES = 1024**3
_MIN_AUDIT_FILE, _MAX_AUDIT_FILE = 256 * 1024, 64 * 1024**3

# Usages that have a name (RFC 5280, 4.2.1.12).
_USAGES = {"serverAuth": "1.3.6.1.5.5.7.3.1", "clientAuth": "1.3.6.1.5.5.7.3.2"}
# Below is broken, and above TLS itself refuses; of curves it knows two.
_RSA_BITS, _ECDSA_BITS = (2048, 16_384), ("256", "384")
_MOST_CALLS_PER_SECOND = 1_000_000
_COLLECTOR = re.compile(r"(https?)://([A-Za-z0-9._-]+|\[[0-9a-f:]+\]):[0-9]+")
# Of a share, in thousandths.
_WHOLE = 1000
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
# A second or so for each password that is tried.
_MOST_COST = 14


def _text(field: str, value: Any, example: str = "") -> str:
    if not isinstance(value, str) or not value:
        raise InvalidField(field, "must be text", example)
    return value


def _path(field: str, value: Any, example: str = "/etc/jobworker/server.pem") -> str:
    if not os.path.isabs(_text(field, value, example)):
        raise InvalidField(field, f"{value!r:.80} is not an absolute path", example)
    return str(value)


def _writable(field: str, value: Any) -> str:
    path = os.path.normpath(_path(field, value, "/srv/build"))
    for special in _SPECIAL:
        if special == path or special.startswith(f"{path.rstrip('/')}/"):
            problem = f"{path} holds {special}, of which each job has its own"
            raise InvalidField(field, problem, "/srv/build")
    return path


def _listen(field: str, value: Any) -> str:
    host, _, port = _text(field, value, "127.0.0.1:7443").rpartition(":")
    in_brackets = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if in_brackets else host)
        in_range = port.isascii() and port.isdigit() and int(port) < 2**16
        valid = in_range and in_brackets == (address.version == 6)  # noqa: PLR2004 - of IP
    except ValueError:
        valid = False
    if not valid:
        problem = f"{value!r:.80} is not ADDRESS:PORT, where an IPv6 address is in brackets"
        raise InvalidField(field, problem, "127.0.0.1:7443")
    return str(value)


def _one_of(*choices: str) -> Parse:
    def parse(field: str, value: Any) -> str:
        if value not in choices:
            raise InvalidField(field, f"{value!r:.40} is not one of {', '.join(choices)}", choices[0])
        return str(value)

    return parse


def _some_of(*choices: str) -> Parse:
    def parse(field: str, value: Any) -> tuple[str, ...]:
        found: tuple[str, ...] = _list(_one_of(*choices))(field, value)
        if not found:
            raise InvalidField(field, "is empty, which would let nobody in", f"[{choices[0]}]")
        return tuple(dict.fromkeys(found))

    return parse


def _list(item: Parse) -> Parse:
    def parse(field: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise InvalidField(field, "must be a list", "[]")
        return tuple(item(f"{field}[{i}]", each) for i, each in enumerate(value))

    return parse


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidField(field, f"{value!r:.40} is neither true nor false", "false")
    return value


def _number(low: int, high: int) -> Parse:
    def parse(field: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise InvalidField(field, f"{value!r:.40} is not a number between {low} and {high}", str(low))
        return value

    return parse


def _ecdsa_bits(field: str, value: Any) -> int:
    return int(_one_of(*_ECDSA_BITS)(field, str(value)))


_EXAMPLES = {"cpu": "50%", "memory": "256M"}


def _limit(name: str) -> Parse:
    def parse(field: str, value: Any) -> int:
        limit: int = limits.BY_NAME[name].read(_text(field, value, _EXAMPLES[name]), field)
        return limit

    return parse


def _or(none: str | int, parse: Parse) -> Parse:
    """A value, or what stands for none."""

    def parse_or_none(field: str, value: Any) -> Any:
        return none if type(value) is type(none) and value == none else parse(field, value)

    return parse_or_none


def _size(field: str, value: Any) -> int:
    try:
        return int(_limit("memory")(field, value))
    except InvalidField as error:
        raise InvalidField(field, f"{error.problem}, or 0 for none", error.example) from None


_SIZE_OR_NONE = _or(0, _size)


def _audit_size(field: str, value: Any) -> int:
    size = units.parse_size(_text(field, value, "32M"), field)
    units.check_range(field, size, (_MIN_AUDIT_FILE, _MAX_AUDIT_FILE), units.format_size)
    return size


def _duration(field: str, value: Any) -> int:
    return units.parse_duration(_text(field, value, "30s"), field)


def _passwords(field: str, value: Any) -> tuple[tuple[str, str], ...]:
    example = "{prometheus: $2y$10$…}"
    if not isinstance(value, dict):
        raise InvalidField(field, "must be a mapping of names to hashes", example)
    for name, hashed in value.items():
        if not isinstance(name, str) or not name.isprintable() or not name or ":" in name:
            raise InvalidField(field, f"{name!r:.40} is not a name: it is printable, and has no colon", example)
        found = _BCRYPT.fullmatch(hashed) if isinstance(hashed, str) else None
        if not found or int(found[1]) > _MOST_COST:
            problem = f"is not a hash by bcrypt of a cost up to {_MOST_COST}; `htpasswd -nB` makes one"
            raise InvalidField(f"{field}.{name:.40}", problem)
    return tuple(value.items())


def _collector(field: str, value: Any) -> str:
    example = "http://127.0.0.1:4317"
    try:
        found = _COLLECTOR.fullmatch(_text(field, value, example))
        port = urlsplit(value).port
    except ValueError:
        found, port = None, None
    if not found or not port:
        raise InvalidField(field, f"{value!r:.80} is not http://ADDRESS:PORT or https://HOST:PORT", example)
    if found[1] == "http" and not _is_loopback(found[2].strip("[]")):
        problem = f"{value!r:.80} would be sent to in the clear, which is for a loopback address only"
        raise InvalidField(field, problem, "https://collector.example.org:4317")
    return str(value)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ratio(field: str, value: Any) -> int:
    problem = InvalidField(field, f"{value!r:.40} is not a share between 0% and 100%", "10%")
    try:
        ratio = 0 if value == 0 else units.parse_cpu(_text(field, value), field)
    except InvalidField:
        raise problem from None
    if ratio > _WHOLE:
        raise problem
    return ratio


def _segment_size(field: str, value: Any) -> int:
    size: int = _limit("memory")(field, value)
    if size > _MAX_SEGMENT_BYTES:
        raise InvalidField(
            field, f"{value!r:.80} is larger than 1G, the most that a segment of a log may have", "5M"
        )
    return size


def _oid(field: str, value: Any) -> str:
    try:
        return identity.check_role_oid(_text(field, value, identity.DEFAULT_ROLE_OID))
    except ValueError as error:
        raise InvalidField(field, str(error), identity.DEFAULT_ROLE_OID) from None


def _usage(field: str, value: Any) -> str:
    return _oid(field, _USAGES.get(str(value), value))


def _principals(field: str, value: Any) -> str:
    return identity.check_principals(field, _text(field, value, identity.PATTERN))


def _cgroup(field: str, value: Any) -> str:
    path = _text(field, value, "/system.slice")
    if not path.startswith("/") or ".." in path.split("/"):
        raise InvalidField(
            field, f"{value!r:.80} is not a cgroup's path from the hierarchy's root", "/system.slice"
        )
    return path.rstrip("/")


# Key in the file: field of the schema, and how its value is read.
TOP: dict[str, tuple[str, Parse]] = {
    "state_dir": ("state_dir", partial(_path, example="/var/lib/jobworker")),
    "listen": ("listen", _listen),
    "log_level": ("log_level", _one_of("info", "debug", "warning", "error")),
    "gateway_uid": ("gateway_uid", _number(0, 2**32 - 2)),
    "policy": ("policy", _or("", partial(_path, example="/etc/jobworker/policy.yaml"))),
    "limits": ("limits", _or("", partial(_path, example="/etc/jobworker/limits.yaml"))),
}
CERTIFICATES: dict[str, tuple[str, Parse]] = {
    "key_types": ("key_types", _some_of("rsa", "ecdsa")),
    "min_rsa_bits": ("min_rsa_bits", _number(*_RSA_BITS)),
    "min_ecdsa_bits": ("min_ecdsa_bits", _ecdsa_bits),
    "hashes": ("hashes", _some_of("sha256", "sha384", "sha512")),
    "client_usages": ("client_usages", _list(_usage)),
    "agent_usages": ("agent_usages", _list(_usage)),
    "max_client_life": ("max_client_life_ms", _or(0, _duration)),
    "max_agent_life": ("max_agent_life_ms", _or(0, _duration)),
}
_TLS: Table = {
    "ca": ("ca", _path),
    "cert": ("cert", _path),
    "key": ("key", _path),
    "role_oid": ("role_oid", _oid),
    "crl": ("crl", _or("", _path)),
    "stale_crl": ("stale_crl", _one_of("refuse", "allow")),
    "revoked": ("revoked", _or("", _path)),
    "certificates": ("certificates", sections.Nested(CERTIFICATES, CertificateSettings)),
}
_JOBS: dict[str, tuple[str, Parse]] = {
    "segment_size": ("segment_bytes", _segment_size),
    "default_pids": ("default_pids", _number(*PIDS_RANGE)),
    "max_cpu": ("max_cpu_millis", _or(0, _limit("cpu"))),
    "max_memory": ("max_memory_bytes", _SIZE_OR_NONE),
    "default_memory": ("default_memory_bytes", _SIZE_OR_NONE),
    "max_jobs_memory": ("max_jobs_memory_bytes", _SIZE_OR_NONE),
    "max_pids": ("max_pids", _number(*PIDS_RANGE)),
    "max_stdin": ("max_stdin_bytes", _SIZE_OR_NONE),
    "max_active": ("max_active", _number(1, 100_000)),
    "open_files": ("open_files", _number(64, 2**20)),
    "compress_logs": ("compress_logs", _flag),
    "keep_log": ("keep_log", _SIZE_OR_NONE),
    "keep_logs": ("keep_logs", _SIZE_OR_NONE),
    "keep_ended": ("keep_ended", _number(1, 1_000_000)),
    "keep_records": ("keep_records_bytes", _SIZE_OR_NONE),
    "keep_for": ("keep_ms", _or(0, _duration)),
    "first_uid": ("first_uid", _number(1000, 2**31 - 2)),
    "uid_count": ("uid_count", _number(1, 2**24)),
    "default_path": ("default_path", partial(_text, example="/usr/bin:/bin")),
    "cgroup_parent": ("cgroup_parent", _or("", _cgroup)),
    "kill_wait": ("kill_wait_ms", _duration),
}

_QUOTAS: dict[str, tuple[str, Parse]] = {
    "streams": ("streams", _number(1, MAX_STREAMS)),
    "calls": ("calls", _number(1, MAX_CALLS)),
    "calls_per_second": ("calls_per_second", _number(0, _MOST_CALLS_PER_SECOND)),
    "calls_burst": ("calls_burst", _number(1, _MOST_CALLS_PER_SECOND)),
    "active_jobs": ("active_jobs", _number(0, 100_000)),
    "jobs_memory": ("jobs_memory_bytes", _SIZE_OR_NONE),
}
_ISOLATION: dict[str, tuple[str, Parse]] = {
    "default": ("default", _one_of(*PROFILES)),
    "missing": ("missing", _one_of("refuse", "report")),
    "writable": ("writable", _list(_writable)),
    "host_for": ("host_for", _list(_principals)),
}
_METRICS: dict[str, tuple[str, Parse]] = {
    "listen": ("listen", _or("", _listen)),
    "plain_http": ("plain_http", _flag),
    "basic_auth_users": ("basic_auth_users", _passwords),
    "job_series": ("job_series", _number(0, MAX_JOB_SERIES)),
}
_TRACING: dict[str, tuple[str, Parse]] = {
    "endpoint": ("endpoint", _or("", _collector)),
    "ratio": ("ratio_millis", _ratio),
}
_AUDIT: dict[str, tuple[str, Parse]] = {
    "max_size": ("max_bytes", _audit_size),
    "keep": ("keep", _number(1, 10_000)),
    "required": ("required", _flag),
}
SECTIONS: Mapping[str, Table] = {
    "tls": _TLS,
    "jobs": _JOBS,
    "quotas": _QUOTAS,
    "isolation": _ISOLATION,
    "metrics": _METRICS,
    "audit": _AUDIT,
    "tracing": _TRACING,
}


# What has no default, and how it may look.
_NEEDED = {"state_dir": "/var/lib/jobworker", "listen": "0.0.0.0:7443"}
_NEEDED_OF_TLS = {name: f"/etc/jobworker/tls/{name}.pem" for name in ("ca", "cert", "key")}
_NOTHING = Settings("", "", TlsSettings("", "", ""))


def load(text: str, base: Settings | None = None) -> Settings:
    """Read a configuration.

    Args:
        text: the file's contents.
        base: what it is laid over; without it state_dir, listen and tls must be in the file.

    Raises:
        Mistakes: all that is wrong with it.
    """
    return read(text, base)[0]


def read(text: str, base: Settings | None = None) -> tuple[Settings, Mapping[str, int]]:
    """The same, and for each key that is there, such as `jobs.max_cpu`, on which line its value is, from 1 on."""
    reader = Reader()
    settings = yaml_reader.load(text, partial(_file, base), empty="", most_bytes=MAX_SETTINGS_BYTES, reader=reader)
    return settings, reader.lines()


def _file(base: Settings | None, reader: Reader, node: Any) -> Settings:
    parts: Table = {name: (name, sections.Nested(table)) for name, table in SECTIONS.items()}
    found = sections.values(reader, node, "the file", {**TOP, **parts})
    if base is None:
        _require(reader, node, _NEEDED, "", found)
        _require(reader, node, _NEEDED_OF_TLS, "tls.", found.get("tls", {}))
    if reader.mistakes:
        return _NOTHING
    over = base or _NOTHING
    made = replace(
        over, **{**found, **{name: replace(getattr(over, name), **found.get(name, {})) for name in SECTIONS}}
    )
    for error in _discords(made, found):
        reader.wrong_beside(node, error.field, error.problem, error.example)
    return made


def _require(reader: Reader, node: Any, needed: Mapping[str, str], prefix: str, found: Mapping[str, Any]) -> None:
    for name, example in needed.items():
        if name not in found:
            reader.wrong_beside(node, f"{prefix}{name}", "is missing", f"{name}: {example}")


def _discords(made: Settings, found: Mapping[str, Any]) -> Iterator[InvalidField]:
    """What is good by itself and not beside others.

    Args:
        made: all settings.
        found: those of the file.
    """
    quotas, metrics, jobs, most = made.quotas, made.metrics, made.jobs, made.jobs.max_active
    if "stale_crl" in found.get("tls", {}) and not made.tls.crl:
        yield InvalidField("tls.stale_crl", "is nothing without tls.crl", "crl: /etc/jobworker/lists.pem")
    if made.policy and found.get("isolation", {}).get("host_for"):
        problem = "is nothing beside a policy, whose rules say so"
        yield InvalidField("isolation.host_for", problem, "sandboxes: [host]")
    if jobs.uid_count < (needed := jobs.keep_ended + most):
        # Each job that is kept has its own, and without one left no other is started.
        problem = (
            f"{jobs.uid_count} is less than the jobs that are kept and those that run (keep_ended + max_active)"
        )
        yield InvalidField("jobs.uid_count", problem, str(needed))
    if quotas.active_jobs > most:
        problem = f"{quotas.active_jobs} is more than all principals may have together (jobs.max_active)"
        yield InvalidField("quotas.active_jobs", problem, str(most))
    if quotas.calls_burst < quotas.calls_per_second:
        problem = f"{quotas.calls_burst} is less than calls_per_second, of which a burst is a second's at least"
        yield InvalidField("quotas.calls_burst", problem, str(2 * quotas.calls_per_second))
    if metrics.plain_http and not _is_loopback(metrics.listen.rpartition(":")[0].strip("[]")):
        problem = f"needs metrics.listen on a loopback address, and it is {metrics.listen!r:.60}"
        yield InvalidField("metrics.plain_http", problem, "listen: 127.0.0.1:7444")
