"""`python -m system.faults`: a campaign, its report on standard output, exit status 1 on any loss."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time

from support.agent import Agent
from system.faults.campaign import Campaign, Report


def main() -> int:
    parser = argparse.ArgumentParser(prog="system.faults")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=20, help="short ones at a time")
    parser.add_argument("--standing", type=int, default=0, help="jobs that run as long as the campaign does")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jobworker-faults-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103 - jobs run as other users, and pass through here
        agent = Agent(directory)
        try:
            report = Campaign(agent, options.kills, options.jobs, options.standing, options.seed).run()
        finally:
            agent.close()
    sys.stdout.write(text(report))
    return 1 if report.losses else 0


def text(report: Report) -> str:
    lines = [f"seed {report.seed}", f"kills {report.kills.total()}: {dict(report.kills)}"]
    lines.append(f"jobs {report.jobs.total()}: {dict(report.jobs)}; bytes {report.bytes}")
    for part, times in report.recovery.items():
        if ordered := sorted(times):
            p50, p99 = (ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
            lines.append(f"{part} serves again after: p50 {p50:.3f} s, p99 {p99:.3f} s, max {ordered[-1]:.3f} s")
    lines.append(f"starts cut off, told as LOST: {report.unsure}")
    return "\n".join([*lines, f"losses {len(report.losses)}", *report.losses, ""])


if __name__ == "__main__":
    sys.exit(main())
