"""The supervisor's program, started by the keeper: `--settings FILE --link-fd N [--ready-fd N]`."""

import os
import sys

# -I and -S leave the package out of the path; at its end, nothing there can stand in for the standard library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from jobworker.errors import JobWorkerError
from jobworker.settings import schema
from jobworker.supervisor.supervisor import Supervisor
from jobworker.wire.keeping import EXIT_REFUSED


def main(arguments: list[str]) -> int:
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    ready_fd = int(options["--ready-fd"]) if "--ready-fd" in options else None
    try:
        settings = schema.read(options["--settings"])
        supervisor = Supervisor(settings, int(options["--link-fd"]))
    except (JobWorkerError, OSError) as error:
        sys.stderr.write(f"supervisor: cannot start: {error}\n")
        return EXIT_REFUSED
    supervisor.run(ready_fd)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
