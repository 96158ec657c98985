"""`worker-client run`: a job on the agent's host as if it were a command here."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from jobworker.cli import client_plan
from jobworker.cli.client_command import complain, connect
from jobworker.cli.client_exit import INTERRUPTED, ExitsAsJob, exit_status, notice_of
from jobworker.cli.client_interrupt import Interrupts, stop_unless_ended
from jobworker.cli.client_output import Sink
from jobworker.cli.client_spec import CONTEXT_SETTINGS, job_options, spec_of
from jobworker.cli.client_stdin import Input, input_of, is_of_another
from jobworker.cli.wakeups import Wakeups
from jobworker.errors import JobWorkerError
from jobworker.jobs import Source

if TYPE_CHECKING:
    from jobworker.client.rpc.client import Client

_HELP = """Start a job, follow its output, and exit with its exit code.

What the job writes to its standard output and standard error comes out of those of this command. The first
Ctrl-C (or SIGTERM) stops the job, the second one leaves it at that. From the command on, everything is the
job's own.
`--format` changes nothing here, except on many hosts and with --dry-run, which `start` explains. With `--stdin -`
the job reads what comes in here, as it comes.

\b
worker-client run --cpu 50% --memory 256M -- make all
worker-client run --env TERM --timeout 10m ./report.sh --full
mysqldump shop | worker-client run --stdin - -- gzip > shop.gz
worker-client run --inventory hosts.yml --group web --max-fail 10% -- uptime

\b
Exit codes: the job's own; 128 + N when signal N ended it; 125 when jobworker failed,
126 when the command cannot be executed, 127 when it was not found, 130 after Ctrl-C,
SIGTERM or SIGHUP. Of many hosts: 0 when all jobs exited with 0, 1 when one did not,
3 when one host was not reached and no job failed.
"""


@click.command("run", cls=ExitsAsJob, help=_HELP, context_settings=CONTEXT_SETTINGS)
@click.option("--detach-on-interrupt", is_flag=True, help="Let the job go on after Ctrl-C.")
@job_options
def run(words: tuple[str, ...], *, detach_on_interrupt: bool, dry_run: bool, **options: Any) -> int:
    reads = input_of(options, live=True)
    spec = reads.of(spec_of(words, {**options, "stdin": None}, os.environ))
    if dry_run:
        client_plan.show(spec, options["idempotency_key"])
        return 0
    with connect() as client, Interrupts(client, detach=detach_on_interrupt) as interrupts:
        try:
            job_id = client.start(spec, idempotency_key=options["idempotency_key"]).id
            interrupts.started(job_id)
            _Following(client, job_id, reads).run()
            # Its end comes a moment after that of its output, or later if it closed that early.
            (job,) = client.wait([job_id])
        except KeyboardInterrupt:
            complain(interrupts.farewell())
            return INTERRUPTED
        except BrokenPipeError:
            raise
        except (JobWorkerError, OSError):
            interrupts.left()
            raise
    if notice := notice_of(job):
        complain(notice)
    return INTERRUPTED if interrupts.count else exit_status(job)


class _Following:
    """Threads that copy a job's output, and one that has the job read what there is to read.

    They are daemons: one that is stuck in a read or a write must not keep this process from ending.
    """

    def __init__(self, client: Client, job_id: str, reads: Input) -> None:
        self._client = client
        self._job_id = job_id
        self._reads = reads
        # None from each copy that is complete, and what any of the threads has failed with.
        self._ended: SimpleQueue[Exception | None] = SimpleQueue()
        self._wakeups = Wakeups()

    def run(self) -> None:
        """Begin, and wait until all output has been copied.

        Raises:
            JobWorkerError: a stream failed; or the job could not get all that it was to read, and is stopped
                unless somebody else writes to it.
            OSError: nobody takes the output; for BrokenPipeError the job is stopped, as a local command would be.
        """
        threading.Thread(target=self._feed, daemon=True).start()
        routes = _routes()
        for route in routes:
            threading.Thread(target=self._copy, args=route, daemon=True).start()
        with self._wakeups.of_signals():
            for _ in routes:
                if failure := self._next():
                    if isinstance(failure, BrokenPipeError):
                        stop_unless_ended(self._client, self._job_id)
                    raise failure

    def _feed(self) -> None:
        """Have the job read. If that fails the job is stopped, unless what it reads is somebody else's."""
        try:
            self._reads.write(self._client, self._job_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job waits
            try:
                if not is_of_another(error):
                    # It would take what it has for all, or wait for ever.
                    with suppress(JobWorkerError):
                        stop_unless_ended(self._client, self._job_id)
            finally:
                self._tell(error)

    def _copy(self, source: Source | None, fd: int) -> None:
        failure: Exception | None = None
        try:
            # Both streams tell of the same gaps.
            sink = Sink(fd, tell=source is not Source.STDOUT)
            sink.copy(self._client.stream(self._job_id, follow=True, source=source))
        except Exception as error:  # noqa: BLE001 - whatever it is, output is missing
            failure = error
        finally:
            self._tell(failure)

    def _tell(self, failure: Exception | None) -> None:
        self._ended.put(failure)
        self._wakeups.wake()

    def _next(self) -> Exception | None:
        """What is told next; waited for where signals are heard, which a wait for the queue would not do."""
        while self._ended.empty():
            self._wakeups.wait()
        return self._ended.get()


def _routes() -> list[tuple[Source | None, int]]:
    """Which output goes to which descriptor: one stream where they are one file, since it keeps the order."""
    out, err = sys.stdout.fileno(), sys.stderr.fileno()
    if os.path.sameopenfile(out, err):
        return [(None, out)]
    return [(Source.STDOUT, out), (Source.STDERR, err)]
