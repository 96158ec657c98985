"""The keeper's program: `--settings FILE [--ready-fd N] [--subreaper yes | --resume-fd N]`.

With `--subreaper yes` the process has prepared itself; with `--resume-fd N` it goes on with what an earlier
program held. With `--check FORMAT` it tells by its exit status whether it would understand that.
"""

import os
import sys

# -I and -S leave the package out of the path; at its end, nothing there can stand in for the standard library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from jobworker import root_side
from jobworker.keeper.keeper import Keeper
from jobworker.wire import handover, stderr


def prepare(command: list[str]) -> None:
    """Become what a process stays through execve(2), a child subreaper with room for descriptors, and execute."""
    # ctypes, a tenth of the keeper's memory, is needed for this alone: the next program does not load it.
    import resource  # noqa: PLC0415

    from jobworker.kernel import syscalls  # noqa: PLC0415

    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    # Three descriptors a job here, five with an open standard input, a dozen in the supervisor.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.execv(command[0], command)


def main(arguments: list[str]) -> int:
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    if "--check" in options:
        return 0 if int(options["--check"]) in handover.READABLE else 1
    if not options.keys() & {"--resume-fd", "--subreaper"}:
        prepare(root_side.keeper(*arguments, "--subreaper", "yes"))
    stderr.replace()
    settings = ("--settings", options["--settings"])
    ready_fd = int(options["--ready-fd"]) if "--ready-fd" in options else None
    keeper = Keeper(tuple(root_side.keeper(*settings)), tuple(root_side.supervisor(*settings)), ready_fd)
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("jw-keeper")
    if "--resume-fd" in options:
        keeper.resume(int(options["--resume-fd"]))
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
