"""What `start` and `run` share: the options that describe a job, and the specification made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from jobworker import jobs, units
from jobworker.cli import client_offers
from jobworker.errors import InvalidField
from jobworker.limits import KINDS, Limits
from jobworker.sandbox import PROFILES

Function = TypeVar("Function", bound=Callable[..., Any])

# From the job's command on, everything is the job's: `start ls -l` needs no `--`.
CONTEXT_SETTINGS = {"allow_interspersed_args": False}

_LIMITS = {
    "cpu": ("PERCENT", "CPU time, in percent of one CPU: 50%, 250%."),
    "cpu_weight": ("N", "Share of the CPU among jobs that want it at once: 1 to 10000, 100 by default."),
    "cpuset": ("CPUS", "CPUs to run on: 0-2,5."),
    "memory": ("SIZE", "Memory, in powers of 1024: 64M, 1G."),
    "swap": ("SIZE", "Swap beyond --memory; by default none."),
    "pids": ("N", "Processes and threads at any one time."),
    "io_read": ("RATE", "Bytes a second read from the disk of the working directory: 10M/s."),
    "io_write": ("RATE", "Bytes a second written to it; with cgroup v1 direct and synchronous writes only."),
    "io_read_ops": ("N", "Read operations a second from it."),
    "io_write_ops": ("N", "Write operations a second to it."),
}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def label_option(told: str) -> Callable[[Function], Function]:
    """The option `--label` with its help; `labels_of` reads what was given."""
    return click.option(
        "--label", metavar="KEY=VALUE", multiple=True, shell_complete=client_offers.labels, help=told
    )


_LIMIT_OPTIONS = tuple(
    click.option(_flag(name), metavar=metavar, help=told) for name, (metavar, told) in _LIMITS.items()
)
_OPTIONS = (
    *_LIMIT_OPTIONS,
    click.option(
        "--profile",
        metavar="NAME",
        default="",
        help="Limits that the agent knows by this name (`info` lists them), where none are given here.",
    ),
    click.option("--timeout", metavar="TIME", help="Stop the job after this time: 500ms, 30s, 10m, 2h, 1d."),
    click.option(
        "--env",
        metavar="NAME[=VALUE]",
        multiple=True,
        help="A variable of the job's environment; without a value, yours is copied. Repeatable. "
        "The job gets these and no others.",
    ),
    click.option("--workdir", metavar="DIR", help="Start there; by default in a fresh directory of its own."),
    label_option("A label to find the job by. Repeatable."),
    click.option("--idempotency-key", metavar="KEY", default="", help="Repeat a start, and get the same job."),
    click.option(
        "--sandbox",
        type=click.Choice(PROFILES),
        help="How far to keep the job from the host; by default as the agent is set up.",
    ),
    click.option(
        "--user", metavar="NAME", default="", help="Run as this user of the host; by default as one of its own."
    ),
    click.option(
        "--stdin",
        metavar="FILE",
        type=click.File("rb"),
        help="What the job reads from its standard input; `-` for yours. By default nothing. For many hosts up to "
        "64 KiB.",
    ),
    click.option(
        "--stdin-open",
        is_flag=True,
        help="Keep its standard input open, behind --stdin if that is given, for `worker-client write`.",
    ),
    click.option(
        "--merge-stderr",
        is_flag=True,
        help="One pipe for standard output and standard error: their order is kept, all is told as the former.",
    ),
    click.option("--best-effort", is_flag=True, help="Start even if a limit cannot be enforced there."),
    click.option("--dry-run", is_flag=True, help="Start nothing, and show what would be started, or why not."),
    click.argument("words", metavar="[--] COMMAND [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED),
)


def job_options(function: Function) -> Function:
    """Give a command the options of a job, and the job's command line as `words`."""
    for add in reversed(_OPTIONS):
        function = add(function)
    return function


def limit_options(function: Function) -> Function:
    """Give a command the options of limits alone."""
    for add in reversed(_LIMIT_OPTIONS):
        function = add(function)
    return function


def spec_of(words: Sequence[str], options: Mapping[str, Any], environ: Mapping[str, str]) -> jobs.JobSpec:
    """The job that a command line asks for, with all that it is to read.

    Args:
        words: the command and its arguments.
        options: as `job_options` names them.
        environ: where variables without a value are copied from.

    Raises:
        InvalidField: an option's value is wrong.
    """
    timeout = options["timeout"]
    return jobs.JobSpec(
        command=words[0],
        args=tuple(words[1:]),
        env=tuple(dict(_variable(text, environ) for text in options["env"]).items()),
        workdir=options["workdir"] or "",
        limits=limits_of(options),
        timeout_ms=0 if timeout is None else _timeout(timeout),
        labels=tuple(labels_of(options["label"]).items()),
        best_effort=options["best_effort"],
        sandbox=options["sandbox"] or "",
        user=options["user"],
        # One byte more tells of a larger one, which may have no end.
        stdin=options["stdin"].read(jobs.MAX_STDIN_BYTES + 1) if options["stdin"] else b"",
        profile=options["profile"],
        stdin_open=options["stdin_open"],
        merge_stderr=options["merge_stderr"],
    )


def _timeout(text: str) -> int:
    millis = units.parse_duration(text, "--timeout")
    if not millis:
        raise InvalidField("--timeout", "is no time at all; leave it out for none", "30s")
    return millis


def limits_of(options: Mapping[str, Any]) -> Limits:
    """The limits that a command line asks for.

    Raises:
        InvalidField: an option's value is wrong.
    """
    values: dict[str, Any] = {}
    for kind in KINDS:
        if (text := options[kind.name]) is not None:
            values[kind.field] = kind.read(text, _flag(kind.name))
    return Limits(**values)


def labels_of(texts: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` texts as a mapping.

    Raises:
        InvalidField: one has no `=`.
    """
    for text in texts:
        if "=" not in text:
            raise InvalidField("--label", f"{text!r:.80} is not KEY=VALUE", "team=build")
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


def _variable(text: str, environ: Mapping[str, str]) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not given and name not in environ:
        raise InvalidField("--env", f"{name!r:.80} is not set here; give it a value", "LANG=C.UTF-8")
    return name, value if given else environ[name]
