"""What jobs read from here: `--stdin` of `start` and `run`, and `worker-client write`."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import IO, TYPE_CHECKING, Any

import click

from jobworker import jobs
from jobworker.cli import client_json, client_offers
from jobworker.cli.client_command import ClientCommand, as_json, complain, connect
from jobworker.cli.client_text import size
from jobworker.cli.progress import Progress, progress
from jobworker.client.failures import CallFailed
from jobworker.errors import InvalidField
from jobworker.jobs import MAX_STDIN_BYTES, JobSpec

if TYPE_CHECKING:
    from jobworker.client.rpc.client import Client

_HELP = """Write to the standard input of a job, and end it.

The job has to be started with --stdin-open. Behind FILE, or your standard input, the job finds the end of what it
reads, unless that is to be kept open for more. Writing goes on as fast as the job reads, and over broken
connections; a terminal shows how far it has got. ID is a job's id, or the beginning of it: four characters or
more.

\b
id=$(worker-client start --stdin-open -- psql shop)
worker-client write $id schema.sql --keep-open
worker-client write $id data.sql
worker-client write $id data.sql --resume

With --resume FILE is all of the job's input, of which the first part has been taken already.
"""


# Of progress, more often than anybody reads.
_PAUSE_SECONDS = 0.1
# In less, what buffers on the way have taken would count as much as what the job has.
_RATE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Input:
    """What a job is to read.

    Attributes:
        rest: behind what comes with its start; None if that is all.
        whole: how many bytes it has in all; None where that is not known before its end.
        end: it finds the end behind that.
        again: the job may be one that an earlier start has made, and has written to.
    """

    begins: bytes
    rest: Iterator[bytes] | None
    whole: int | None
    end: bool
    again: bool = False

    def of(self, spec: JobSpec) -> JobSpec:
        """The job that is started with it."""
        return replace(spec, stdin=self.begins, stdin_open=self.rest is not None or not self.end)

    def write(self, client: Client, job_id: str, line: Progress | None = None) -> None:
        """Write the rest, as far as the job wants it and has not taken it before.

        Args:
            client: of the job's host.
            job_id: the job.
            line: shows how far that has got.

        Raises:
            JobWorkerError: not all of it was taken.
            OSError: it cannot be read here.
        """
        if self.rest is None:
            return
        rest, taken = self.rest, len(self.begins)
        if self.again:
            job = client.query(job_id)
            if not job.stdin_open:
                return
            rest, taken = _behind(rest, job.stdin_bytes - taken), job.stdin_bytes
        if line:
            rest = _shown(rest, self.whole, taken, line)
        try:
            client.write_stdin(job_id, rest, offset=taken, end=self.end)
        except CallFailed as error:
            # As in a pipe on this host: who does not want to read more, need not.
            if error.reason != "STDIN_ENDED":
                raise


def input_of(options: Mapping[str, Any], *, live: bool) -> Input:
    """What the options of a job say that it is to read.

    Args:
        options: as `job_options` names them.
        live: what is no regular file is passed on as it comes, rather than waited for.
    """
    file, end = options["stdin"], not options["stdin_open"]
    if file is None:
        return Input(b"", None, None, end)
    if live and not stat.S_ISREG(os.fstat(file.fileno()).st_mode) and not options["idempotency_key"]:
        return Input(b"", _pieces(file), None, end)
    # What is small enough comes with the start, as any agent takes it.
    head = _head(file)
    if len(head) <= MAX_STDIN_BYTES:
        return Input(head, None, None, end)
    rest = chain((head[MAX_STDIN_BYTES:],), _pieces(file))
    return Input(head[:MAX_STDIN_BYTES], rest, _size(file), end, again=bool(options["idempotency_key"]))


def is_of_another(error: Exception) -> bool:
    """Why input was not written: the job has taken some that did not come from here."""
    if isinstance(error, CallFailed):
        return error.reason == "STDIN_OFFSET" or error.code == "ABORTED"
    return isinstance(error, InvalidField)


def _behind(pieces: Iterator[bytes], taken: int) -> Iterator[bytes]:
    """Those behind so many bytes.

    Raises:
        InvalidField: there are not so many.
    """
    skip = taken
    while skip > 0:
        if not (data := next(pieces, b"")):
            raise InvalidField("--stdin", f"ends {skip} bytes before what the job has taken of it")
        if len(data) > skip:
            pieces = chain((data[skip:],), pieces)
        skip -= len(data)
    return pieces


def _head(file: IO[bytes]) -> bytes:
    """All that a file holds, or more than comes with a start."""
    head = b""
    while len(head) <= MAX_STDIN_BYTES and (data := _read(file)):
        head += data
    return head


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """What a file holds, each piece as soon as it is there."""
    while data := _read(file):
        yield data


def _read(file: IO[bytes]) -> bytes:
    # Not by the file's own buffer: a thread that waits in there keeps the interpreter from ending.
    try:
        return os.read(file.fileno(), MAX_STDIN_BYTES)
    except OSError as error:
        # Of a descriptor alone: whoever tells of it would take it for the output.
        raise OSError(error.errno, error.strerror, file.name) from None


def _size(file: IO[bytes]) -> int | None:
    """How many bytes a file has; None where that is not known before its end."""
    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _shown(pieces: Iterator[bytes], whole: int | None, taken: int, line: Progress) -> Iterator[bytes]:
    """The same pieces of input, while the line shows how many of its bytes were handed on.

    What comes with one message, and what is typed, shows none.
    """
    sent, started, shown = 0, time.monotonic(), 0.0
    for data in pieces:
        yield data
        sent += len(data)
        now = time.monotonic()
        if sent >= MAX_STDIN_BYTES and now - shown > _PAUSE_SECONDS:
            shown, seconds = now, now - started
            rate = f", {size(int(sent / seconds))}/s" if seconds > _RATE_SECONDS else ""
            line.show(_written(taken + sent, whole) + rate)


def _written(done: int, whole: int | None) -> str:
    # A file may grow meanwhile.
    if whole is None or done > whole:
        return f"{size(done)} written"
    return f"{size(done)} of {size(whole)} written ({done * 100 // whole} %)"


@click.command("write", cls=ClientCommand, help=_HELP)
@click.option("--keep-open", is_flag=True, help="More will be written: the job finds no end behind this.")
@click.option("--resume", is_flag=True, help="Go on in FILE where the job's input has got to.")
@click.argument("job_id", metavar="ID", shell_complete=client_offers.jobs(*jobs.ACTIVE))
@click.argument("file", metavar="[FILE]", type=click.File("rb"), default="-")
def write(job_id: str, file: IO[bytes], *, keep_open: bool, resume: bool) -> None:
    with connect() as client:
        whole = client.resolve(job_id)
        offset = _skip(file, client.query(whole).stdin_bytes) if resume else None
        try:
            with progress() as line:
                pieces = _shown(_pieces(file), _size(file), offset or 0, line)
                written = client.write_stdin(whole, pieces, offset=offset, end=not keep_open)
        except KeyboardInterrupt:
            complain(f"the standard input of job {whole} is still open; `worker-client write` goes on with it")
            raise
    if as_json():
        click.echo(client_json.line({"id": whole, "taken": written.taken, "ended": written.ended}))
    else:
        click.echo(f"{whole}  {written.taken} bytes{', ended' if written.ended else ''}")


def _skip(file: IO[bytes], taken: int) -> int:
    """Go to where the input has got to."""
    if not file.seekable():
        raise InvalidField("--resume", "needs a FILE: what came over a pipe is gone", "data.sql --resume")
    if os.lseek(file.fileno(), 0, os.SEEK_END) < taken:
        raise InvalidField("--resume", f"needs all of the job's input, of which {taken} bytes were taken")
    return os.lseek(file.fileno(), taken, os.SEEK_SET)
