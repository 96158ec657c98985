"""What `start` and `run` share: the options that describe a job, and the specification made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from jobworker import jobs
from jobworker.errors import InvalidField
from jobworker.sandbox import PROFILES

Function = TypeVar("Function", bound=Callable[..., Any])

# From the job's command on, everything is the job's: `start ls -l` needs no `--`.
CONTEXT_SETTINGS = {"allow_interspersed_args": False}

_OPTIONS = (
    click.option("--cpu", metavar="PERCENT", help="CPU time, in percent of one CPU: 50%, 250%."),
    click.option("--memory", metavar="SIZE", help="Memory, in powers of 1024: 64M, 1G."),
    click.option("--pids", type=click.IntRange(*jobs.PIDS_RANGE), help="Processes and threads at any one time."),
    click.option("--timeout", metavar="TIME", help="Stop the job after this time: 500ms, 30s, 10m, 2h, 1d."),
    click.option(
        "--env",
        metavar="NAME[=VALUE]",
        multiple=True,
        help="A variable of the job's environment; without a value, yours is copied. Repeatable. "
        "The job gets these and no others.",
    ),
    click.option("--workdir", metavar="DIR", help="Start there; by default in a fresh directory of its own."),
    click.option("--label", metavar="KEY=VALUE", multiple=True, help="A label to find the job by. Repeatable."),
    click.option("--idempotency-key", metavar="KEY", default="", help="Asked again with this, get the same job."),
    click.option(
        "--sandbox",
        type=click.Choice(PROFILES),
        help="How far to keep the job from the host; by default as the agent is set up.",
    ),
    click.option("--best-effort", is_flag=True, help="Start even if a limit cannot be enforced there."),
    click.argument("words", metavar="[--] COMMAND [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED),
)


def job_options(function: Function) -> Function:
    """Give a command the options of a job, and the job's command line as `words`."""
    for add in reversed(_OPTIONS):
        function = add(function)
    return function


def spec_of(words: Sequence[str], options: Mapping[str, Any], environ: Mapping[str, str]) -> jobs.JobSpec:
    """The job that a command line asks for.

    Args:
        words: the command and its arguments.
        options: as `job_options` names them.
        environ: where variables without a value are copied from.

    Raises:
        InvalidField: an option's value is wrong.
    """
    cpu, memory, timeout = options["cpu"], options["memory"], options["timeout"]
    limits = jobs.Limits(
        cpu_millis=None if cpu is None else jobs.parse_cpu(cpu, "--cpu"),
        memory_bytes=None if memory is None else jobs.parse_size(memory, "--memory"),
        pids=options["pids"],
    )
    return jobs.JobSpec(
        command=words[0],
        args=tuple(words[1:]),
        env=tuple(dict(_variable(text, environ) for text in options["env"]).items()),
        workdir=options["workdir"] or "",
        limits=limits,
        timeout_ms=0 if timeout is None else jobs.parse_duration(timeout, "--timeout"),
        labels=tuple(labels_of(options["label"]).items()),
        best_effort=options["best_effort"],
        sandbox=options["sandbox"] or "",
    )


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
