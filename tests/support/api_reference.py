"""docs/api.md and docs/errors.md: what the contract's comments and the table of statuses say, as pages."""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc_tools  # type: ignore[import-untyped] # has no types
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from jobworker import errors
from jobworker.gateway import status

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_FILES = ("jobworker/api/v1/job_worker_service.proto", "jobworker/api/v1/job.proto")
_PACKAGE = ".jobworker.api.v1."
# Numbers of fields in descriptor.proto, of which the paths of comments are made.
_MESSAGES, _ENUMS, _SERVICES, _MEMBERS = 4, 5, 6, 2
_REPEATED, _ENTRY = FieldDescriptorProto.LABEL_REPEATED, "Entry"

_API = """\
# API

Made from the comments of the files in the repository's `proto/jobworker/api/v1` by `make docs`. Of these files
`buf` and `protoc` make clients in any language. [errors.md](errors.md) has all reasons that a call can fail for,
and [python.md](python.md) the client that is there already.
"""

_ERRORS = """\
# Errors

What an agent answers when it does not do what was asked: a gRPC status whose `google.rpc.ErrorInfo` (domain
`jobworker`) has the reason, which is stable and made for programs, and as metadata the fields. The message is the
sentence that people read. Where fields of the request are wrong there is a `google.rpc.BadRequest` as well, and a
`google.rpc.RetryInfo` where the same call may succeed later. Made from the program by `make docs`; what to do, by
the sentence, stands in [operations.md](operations.md#troubleshooting-by-symptom).

| reason | status | means | metadata |
|---|---|---|---|
"""

_EXIT_CODES = """
## Exit codes of worker-client

| code | means |
|---|---|
| 0 | done |
| 1 | failed, for any other reason than these |
| 2 | not understood: INVALID_ARGUMENT, or an option that is wrong |
| 3 | of many hosts: some were not reached, and none failed |
| 4 | not allowed: PERMISSION_DENIED, UNAUTHENTICATED |
| 130 | interrupted by Ctrl-C |
| 141 | nobody reads the output any more |

`run` and `wait` exit as the job did, with 128 + N when signal N ended it, and with 125 when jobworker failed;
`run` with 126 when the command cannot be executed, 127 when it was not found; `wait` and `drain` with 124 after
their `--timeout`.

`worker-agent` and `worker-pki` exit with 0, with 1 if something failed, is wrong or is denied, and with 2 if they
have not been understood; with 130 and 141 likewise.
"""


class _Page:
    """One file of the contract with its comments."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self._comments = {tuple(each.path): each.leading_comments for each in file.source_code_info.location}

    def comment(self, *path: int) -> str:
        lines = (line.removeprefix(" ") for line in self._comments.get(path, "").strip("\n").split("\n"))
        return "\n".join(lines).strip()

    def cell(self, *path: int) -> str:
        return re.sub(r"\s+", " ", self.comment(*path)).replace("|", "\\|")

    def services(self) -> Iterator[str]:
        for i, service in enumerate(self.file.service):
            yield f"\n## {service.name}\n\n{self.comment(_SERVICES, i)}\n"
            for j, method in enumerate(service.method):
                asked, told = (
                    f"{'stream of ' if streams else ''}{_linked(kind)}"
                    for streams, kind in (
                        (method.client_streaming, method.input_type),
                        (method.server_streaming, method.output_type),
                    )
                )
                yield f"\n### {method.name}\n\n{asked} → {told}\n\n{self.comment(_SERVICES, i, _MEMBERS, j)}\n"

    def messages(self) -> Iterator[str]:
        for i, message in enumerate(self.file.message_type):
            yield f"\n### {message.name}\n\n{self.comment(_MESSAGES, i)}\n"
            if message.field:
                yield "\n| field | number | type | meaning |\n|---|---|---|---|\n"
            for j, field in enumerate(message.field):
                told = self.cell(_MESSAGES, i, _MEMBERS, j)
                yield f"| `{field.name}` | {field.number} | {_type(field, message)} | {told} |\n"

    def enums(self) -> Iterator[str]:
        for i, enum in enumerate(self.file.enum_type):
            yield f"\n### {enum.name}\n\n{self.comment(_ENUMS, i)}\n"
            yield from self._values(i, enum)

    def _values(self, i: int, enum: EnumDescriptorProto) -> Iterator[str]:
        yield "\n| value | number | meaning |\n|---|---|---|\n"
        for j, value in enumerate(enum.value):
            yield f"| `{value.name}` | {value.number} | {self.cell(_ENUMS, i, _MEMBERS, j)} |\n"


def api() -> str:
    """docs/api.md."""
    pages = [_Page(file) for file in _described()]
    parts = [_API, *(text for page in pages for text in page.services()), "\n## Messages\n"]
    parts += [text for page in pages for text in page.messages()]
    parts += ["\n## Enums\n", *(text for page in pages for text in page.enums())]
    return "".join(parts)


def comments() -> dict[tuple[str, str], str]:
    """What is said of each field, by its message's name and its own."""
    return {
        (message.name, field.name): page.cell(_MESSAGES, i, _MEMBERS, j)
        for page in map(_Page, _described())
        for i, message in enumerate(page.file.message_type)
        for j, field in enumerate(message.field)
    }


def error_page() -> str:
    """docs/errors.md."""
    rows = [
        f"| `{rule.reason}` | {rule.code.name} | {_meaning(kind)} | {_fields(kind)} |\n"
        for kind, rule in status.RULES.items()
        if rule.public
    ]
    internal = "| `INTERNAL` | INTERNAL | A fault of the agent's own; its log tells more. | |\n"
    return _ERRORS + "".join(rows) + internal + _EXIT_CODES


def _meaning(kind: type[errors.JobWorkerError]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _fields(kind: type[errors.JobWorkerError]) -> str:
    return ", ".join(f"`{name}`" for name in inspect.get_annotations(kind))


def _described() -> Sequence[FileDescriptorProto]:
    include = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
    with tempfile.NamedTemporaryFile() as out:
        options = ["--include_source_info", f"--descriptor_set_out={out.name}"]
        proto = os.path.join(ROOT, "proto")
        if protoc.main(["protoc", f"-I{proto}", f"-I{include}", *options, *_FILES]):
            raise RuntimeError("protoc refuses the contract")
        return FileDescriptorSet.FromString(out.read()).file


def _linked(name: str) -> str:
    """A type's name, which leads to where it is explained."""
    if not name.startswith(_PACKAGE):
        return f"`{name.lstrip('.')}`"
    short = name.removeprefix(_PACKAGE)
    return f"[{short}](#{short.lower()})"


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    entries: Mapping[str, Any] = {each.name: each for each in message.nested_type if each.name.endswith(_ENTRY)}
    if entry := entries.get(field.type_name.rpartition(".")[2]):
        key, value = entry.field
        return f"map of {_type(key, message)} to {_type(value, message)}"
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = _linked(field.type_name) if field.type_name else kind
    if field.label == _REPEATED:
        return f"list of {name}"
    return f"{name}, optional" if field.proto3_optional else name
