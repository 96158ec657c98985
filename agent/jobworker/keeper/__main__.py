"""The keeper and, below it, the supervisor: `python -I -S -E … --settings FILE [--ready-fd N]`."""

import os
import sys

# -I and -S leave the package out of the path; at its end, nothing there can stand in for the standard library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from jobworker.keeper.keeper import Keeper
from jobworker.kernel import syscalls


def main(arguments: list[str]) -> int:
    """Take `--settings FILE` for the supervisor and `--ready-fd N` for its first life."""
    settings = arguments[arguments.index("--settings") + 1]
    ready_fd = int(arguments[arguments.index("--ready-fd") + 1]) if "--ready-fd" in arguments else None
    program = os.path.join(
        os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "supervisor", "__main__.py"
    )
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    return Keeper([sys.executable, "-I", "-S", "-E", program, "--settings", settings], ready_fd).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
