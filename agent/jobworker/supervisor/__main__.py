"""The supervisor's program, started by the keeper: `--settings FILE --link-fd N [--ready-fd N] [--parked yes]`.

In an upgrade it is executed by the version before it, which adds `--stand-in-fd N`, the connection to who moves
the output meanwhile, and `--audit-lost N,N`, the lines that it could not write to each of the audit trails.

With `--check yes` in place of the link it reads settings and state as a start would, and ends; with `--survey yes`
it tells what it finds of the host, as canonical JSON.
"""

import os
import sys

# -I and -S leave the package out of the path; at its end, nothing there can stand in for the standard library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from jobworker.errors import JobWorkerError
from jobworker.settings import schema
from jobworker.supervisor import store
from jobworker.supervisor.supervisor import Supervisor
from jobworker.wire import stderr


def main(arguments: list[str]) -> int:
    stderr.replace()
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    ready_fd = int(options["--ready-fd"]) if "--ready-fd" in options else None
    path = options["--settings"]
    try:
        settings = schema.read(path)
        if "--check" in options:
            store.check(settings.state_dir)
            return 0
        if "--survey" in options:
            # Not before, since no other start has a use for it.
            from jobworker.supervisor import survey  # noqa: PLC0415

            sys.stdout.buffer.write(survey.told(settings))
            return 0
        link_fd, stand_in = int(options["--link-fd"]), options.get("--stand-in-fd")
        supervisor = Supervisor(
            settings,
            path,
            link_fd,
            parked="--parked" in options,
            audit_lost=tuple(map(int, options.get("--audit-lost", "0,0").split(","))),
            stand_in_fd=None if stand_in is None else int(stand_in),
        )
    except (JobWorkerError, OSError) as error:
        sys.stderr.write(f"supervisor: cannot start: {error}\n")
        return 1
    supervisor.run(ready_fd)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
