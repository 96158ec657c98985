"""How long a scrape of the metrics takes, and how large it is, with few jobs and with many."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from bench import agents
from bench.report import Outcome, Table, below
from bench.scale import Scale
from bench.stats import median, p99
from support.scraping import Scraper

_MILLIS, _SERIES = 50.0, 600
_JOB_SERIES = 100
_SCRAPES = 50


@dataclass(frozen=True, slots=True)
class _Scraped:
    millis: list[float]
    series: int


def measure(scale: Scale) -> Outcome:
    seen = {
        "no job": _scrape(0, 0),
        f"{scale.stored_jobs} ended, {scale.many_jobs} running": _scrape(scale.stored_jobs, scale.many_jobs),
        f"the same, {_JOB_SERIES} with series of their own": _scrape(
            scale.stored_jobs, scale.many_jobs, _JOB_SERIES
        ),
    }
    rows = tuple(
        (name, f"{median(each.millis):.1f}", f"{p99(each.millis):.1f}", str(each.series))
        for name, each in seen.items()
    )
    _, many, _ = seen.values()
    return Outcome(
        (
            Table(
                "A scrape of the metrics",
                ("", "p50 ms", "p99 ms", "series"),
                rows,
                (f"{_SCRAPES} each, one after the other, without TLS.",),
            ),
        ),
        (
            below("a scrape, p50", median(many.millis), _MILLIS, " ms"),
            below("series of a scrape", many.series, _SERIES),
        ),
    )


def _scrape(ended: int, running: int, job_series: int = 0) -> _Scraped:
    metrics = f"metrics: {{listen: '127.0.0.1:0', plain_http: true, job_series: {job_series}}}\n"
    with agents.running(ended, metrics) as agent, agents.stub(agent) as service:
        agents.seconds_to_list(service)
        agents.start_jobs(service, agents.QUIET, running)
        host, port = Scraper(agent).address
        url = f"http://{host}:{port}/metrics"
        text = _get(url)()
        series = sum(not line.startswith(b"#") for line in text.splitlines())
        return _Scraped([_millis(_get(url)) for _ in range(_SCRAPES)], series)


def _get(url: str) -> Callable[[], bytes]:
    def get() -> bytes:
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - our own agent's
            body: bytes = answer.read()
            return body

    return get


def _millis(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000
