"""The keeper's program: `python -I -S -E … --settings FILE [--ready-fd N | --resume-fd N | --check FORMAT]`."""

import os
import sys

# -I and -S leave the package out of the path; at its end, nothing there can stand in for the standard library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from jobworker.keeper import handover
from jobworker.keeper.keeper import Keeper


def become_subreaper(command: list[str]) -> None:
    """Become a child subreaper, which a process stays through execve(2), and execute the command."""
    # ctypes, a tenth of the keeper's memory, is needed for this alone: the next program does not load it.
    from jobworker.kernel import syscalls  # noqa: PLC0415

    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    os.execv(command[0], command)


def main(arguments: list[str]) -> int:
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    python = (sys.executable, "-I", "-S", "-E")
    own = os.path.abspath(__file__)
    if "--check" in options:
        return 0 if int(options["--check"]) == handover.FORMAT else 1
    if not options.keys() & {"--resume-fd", "--subreaper"}:
        become_subreaper([*python, own, *arguments, "--subreaper", "yes"])
    supervisor = os.path.join(os.path.dirname(os.path.dirname(own)), "supervisor", "__main__.py")
    settings = ("--settings", options["--settings"])
    ready_fd = int(options["--ready-fd"]) if "--ready-fd" in options else None
    keeper = Keeper((*python, own, *settings), (*python, supervisor, *settings), ready_fd)
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("jw-keeper")
    if "--resume-fd" in options:
        keeper.resume(int(options["--resume-fd"]))
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
