"""`python -m bench`: measure the agent beside its peers, in one run on one machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from jobworker import tls13

# Before grpc is imported; the processes that are started here inherit it.
tls13.require()

from bench import (  # noqa: E402
    cli_startup,
    compression,
    document,
    fanout,
    floods,
    fork_bomb,
    idle_cpu,
    log_seek,
    memory_use,
    pump,
    query_speed,
    recovery,
    sandbox_cost,
    scrape,
    start_latency,
    start_rate,
    stream_formats,
    stream_rate,
    upgrade,
)
from bench.report import Outcome, figures_table  # noqa: E402
from bench.scale import FULL, QUICK, Scale  # noqa: E402

MEASUREMENTS: dict[str, Callable[[Scale], Outcome]] = {
    "start": start_latency.measure,
    "rate": start_rate.measure,
    "pump": pump.measure,
    "compression": compression.measure,
    "stream": stream_rate.measure,
    "formats": stream_formats.measure,
    "fanout": fanout.measure,
    "seek": log_seek.measure,
    "memory": memory_use.measure,
    "idle": idle_cpu.measure,
    "query": query_speed.measure,
    "cli": cli_startup.measure,
    "recovery": recovery.measure,
    "upgrade": upgrade.measure,
    "sandbox": sandbox_cost.measure,
    "scrape": scrape.measure,
    "floods": floods.measure,
    "bomb": fork_bomb.measure,
}
_DOCUMENT = "docs/benchmarks.md"


def main(arguments: Sequence[str]) -> None:
    options = _parse(arguments)
    scale = QUICK if options.quick else FULL
    outcomes = [_run(name, scale) for name in options.only]
    figures = [figure for outcome in outcomes for figure in outcome.figures]
    print(figures_table(figures).markdown())
    output = options.output or (None if options.quick or len(outcomes) < len(MEASUREMENTS) else _DOCUMENT)
    if output:
        document.write(output, outcomes)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of everything, in under two minutes")
    parser.add_argument(
        "--only", type=_names, default=list(MEASUREMENTS), metavar="NAMES", help=f"of: {','.join(MEASUREMENTS)}"
    )
    parser.add_argument("--output", metavar="FILE", help=f"a full run goes into {_DOCUMENT}, another one nowhere")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = set(names) - MEASUREMENTS.keys()
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there is no such measurement")
    return names


def _run(name: str, scale: Scale) -> Outcome:
    begin = time.monotonic()
    print(f"measuring: {name}", file=sys.stderr, flush=True)
    outcome = MEASUREMENTS[name](scale)
    for table in outcome.tables:
        print(table.markdown(), flush=True)
    print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return outcome


if __name__ == "__main__":
    main(sys.argv[1:])
