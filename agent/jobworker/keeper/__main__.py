"""The keeper's program: `python -I -S -E … --settings FILE [--ready-fd N | --resume-fd N | --check FORMAT]`."""

import os
import sys

# -I and -S leave the package out of the path; at its end, nothing there can stand in for the standard library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from jobworker.keeper import handover
from jobworker.keeper.keeper import Keeper
from jobworker.kernel import syscalls


def main(arguments: list[str]) -> int:
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    if "--check" in options:
        return 0 if int(options["--check"]) == handover.FORMAT else 1
    own = os.path.abspath(__file__)
    supervisor = os.path.join(os.path.dirname(os.path.dirname(own)), "supervisor", "__main__.py")
    python = (sys.executable, "-I", "-S", "-E")
    settings = ("--settings", options["--settings"])
    ready_fd = int(options["--ready-fd"]) if "--ready-fd" in options else None
    keeper = Keeper((*python, own, *settings), (*python, supervisor, *settings), ready_fd)
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("jw-keeper")
    if "--resume-fd" in options:
        keeper.resume(int(options["--resume-fd"]))
    else:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
