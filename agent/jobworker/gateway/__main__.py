"""`python -m jobworker.gateway`: started by the agent, with canonical settings."""

from __future__ import annotations

import argparse
import asyncio
import sys

from jobworker import codec
from jobworker.errors import JobWorkerError
from jobworker.findings import Findings
from jobworker.gateway import app, check, log
from jobworker.settings import schema


def main() -> int:
    parser = argparse.ArgumentParser(prog="jobworker.gateway", description=__doc__)
    parser.add_argument("--settings", required=True, metavar="PATH", help="canonical settings")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="gets HOST:PORT once calls are served")
    parser.add_argument("--while-stdin", action="store_true", help="end when standard input does")
    parser.add_argument(
        "--check-as",
        type=int,
        metavar="UID",
        help="don't serve: say, as canonical JSON, what is wrong with the files",
    )
    arguments = parser.parse_args()
    try:
        settings = schema.read(arguments.settings)
        log.configure(settings.log_level)
        if arguments.check_as is not None:
            check.become(arguments.check_as)
            sys.stdout.buffer.write(codec.dumps(Findings(tuple(check.findings(settings)))))
            return 0
        asyncio.run(app.serve(settings, arguments.ready_fd, while_stdin=arguments.while_stdin))
    except OSError as error:
        return _refuse(str(error))
    except JobWorkerError as error:
        return _refuse(str(error))
    return 0


def _refuse(problem: str) -> int:
    sys.stderr.write(f"jobworker gateway: {problem}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
