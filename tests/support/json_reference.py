"""docs/json.md: the objects that `worker-client --format json` prints, by the code that makes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.cli import client_json
from support import api_reference

_PAGE = """\
# JSON

What `worker-client` prints with `--format json`: one object on a line, in ASCII, so that lines are what jq and others
take one after the other. Made from the program by `make docs`.

Sizes are in bytes and durations in seconds, as numbers; times are texts in RFC 3339 and UTC, exact to the nanosecond. What
is not known, or has not come yet, is null. Later versions may add keys; those that are there keep their meaning.

| command | lines |
|---|---|
| `start`, `stop`, `query`, `signal`, `update` | [the job](#a-job) |
| `list`, `wait` | a job each |
| `start --dry-run` | `dry_run` (true), `rule`: which one allows it, `job`: as it would be |
| `watch` | by `type`: `job` with the `job` as it is now, `removed` with its `id`, `mark` where nothing has changed, with `snapshot_complete`, `restarted` with the `reason` why changes are left out; all but the last with a `resume_token` |
| `stream` | by `type`: `line` ([its keys](api.md#outputformat)), `gap` with `offset`, `length` and `reason`, `end` with the `offset` to go on at and `output_ended` |
| `top` | a job's use, `type` being `use`: `id`, `host`, `principal`, `cpu_percent`, `memory_bytes`, `io_read_bytes_per_second`, `io_written_bytes_per_second`, `processes`, `command`, `args` |
| `delete` | `id`, `removed` (true) |
| `write` | `id`, `taken`: bytes of its input so far, `ended` |
| `info` | [the agent](#an-agent) |
| `drain`, `undrain` | `draining`, and with `drain` `active_job_ids` |
| `reload` | `read`: what was read, `stale_files`: what is wrong with those that are not in force, by what they hold |
| `doctor` | a check each: `check`, `level` (`ok`, `warn`, `fail`), `told`, `hint` |
| `context` | a context each: `name`, `addr`, `current` |
| `version` | `version` |

Of many hosts each line has its `host`, and a `type`: `job` with a `job`, `agent` with an `agent`, those of `stream`, and as
the last of each host `result` with `status` (OK, WITHOUT: no such job there, FAILED, UNREACHABLE, LEFT or NOT_BEGUN), `reason` and `detail`.
"""  # noqa: E501 - rows of a table are lines

# Where a key is not called as the field that it is made of.
_FIELDS = {"default": "default_value"}
_IN_SECONDS = re.compile(r"(.*)_seconds")


def page() -> str:
    """The whole of it."""
    comments = api_reference.comments()
    parts = [_PAGE]
    for title, kind, plain in (
        ("A job", job_pb2.Job, client_json.job(_filled(job_pb2.Job()))),
        ("An agent", pb.GetAgentInfoResponse, client_json.agent(_filled(pb.GetAgentInfoResponse()))),
    ):
        parts += [f"\n## {title}\n\n| key | is | meaning |\n|---|---|---|\n"]
        parts += _rows(plain, kind.DESCRIPTOR, "", comments)
    return "".join(parts)


def _filled(message: Any) -> Any:
    """The message with one of everything in it, so that nothing is left out."""
    for field in message.DESCRIPTOR.fields:
        if _is_map(field):
            getattr(message, field.name)["NAME"] = ""
        elif field.message_type is None:
            if not field.is_repeated:
                setattr(message, field.name, field.default_value)
        elif field.is_repeated:
            _filled(getattr(message, field.name).add())
        elif field.message_type.file.package == "google.protobuf":
            getattr(message, field.name).SetInParent()
        else:
            _filled(getattr(message, field.name))
    for name in ("name", "what"):
        if name in message.DESCRIPTOR.fields_by_name:
            setattr(message, name, "NAME")
    return message


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _rows(
    plain: Mapping[str, Any], kind: Descriptor, prefix: str, comments: Mapping[tuple[str, str], str]
) -> Iterator[str]:
    for key, value in plain.items():
        field = _field(kind, key)
        told = comments.get((kind.name, field.name), "") if field else ""
        yield f"| `{prefix}{key}` | {_type(value, field)} | {told} |\n"
        inner = value.get("NAME") if isinstance(value, dict) and "NAME" in value else value
        if isinstance(inner, dict) and field and field.message_type:
            of_each = ".NAME" if inner is not value else ""
            yield from _rows(inner, field.message_type, f"{prefix}{key}{of_each}.", comments)


def _field(kind: Descriptor, key: str) -> FieldDescriptor | None:
    stem = _IN_SECONDS.fullmatch(key)
    names = [_FIELDS.get(key, key), *((stem[1], f"{stem[1]}_time") if stem else ()), f"is_{key}"]
    return next((kind.fields_by_name[name] for name in names if name in kind.fields_by_name), None)


def _type(value: object, field: FieldDescriptor | None) -> str:
    match value:
        case dict():
            return "object, by name" if "NAME" in value else "object"
        case list():
            return "list of texts"
        case bool():
            return "true or false"
        case int() | float():
            return "number"
    if field and field.message_type is not None and field.message_type.name == "Timestamp":
        return "time"
    return "text"
