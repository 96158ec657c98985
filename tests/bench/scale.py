"""How much is measured: every count and time that bounds a run stands here."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Scale:
    """Counts are per contender.

    Attributes:
        rounds: of the comparisons that take seconds each.
        starts: with a pause before each.
        rate_seconds: of one round.
        pump_bytes: that one job writes.
        stream_bytes: that all followers of one round take together.
        quiet_jobs: for what one job costs in memory.
        many_jobs: for idle CPU and recovery.
        ended_jobs: for what one ended job costs in memory.
        log_bytes: of the large log.
        looks: into each log, for each kind of look.
        followers: idle ones, for what one costs in memory.
        fanout: followers of one job, and `stalled` of them beside it, for what it takes to reach them all.
        fanout_seconds: of one round.
        stored_jobs: for the speed of Query and List.
        calls: of Query and of List.
        idle_seconds: over which CPU time is taken.
        cold_starts: of the command line.
        kills: of the supervisor.
        upgraded_jobs: that write meanwhile.
    """

    rounds: int = 5
    starts: int = 200
    rate_seconds: float = 4.0
    pump_bytes: int = 1024 * MIB
    stream_bytes: int = 512 * MIB
    quiet_jobs: int = 200
    many_jobs: int = 1_000
    ended_jobs: int = 2_000
    followers: int = 200
    log_bytes: int = 2048 * MIB
    looks: int = 100
    fanout: int = 1_000
    stalled: int = 50
    fanout_seconds: float = 10.0
    stored_jobs: int = 10_000
    calls: int = 1_000
    idle_seconds: float = 10.0
    cold_starts: int = 20
    kills: int = 5
    upgraded_jobs: int = 200
    upgrades: int = 20


FULL = Scale()
QUICK = Scale(
    rounds=2,
    starts=30,
    rate_seconds=1.5,
    pump_bytes=256 * MIB,
    stream_bytes=128 * MIB,
    many_jobs=200,
    idle_seconds=5.0,
    log_bytes=256 * MIB,
    looks=30,
    fanout=200,
    stalled=10,
    fanout_seconds=3.0,
    stored_jobs=2_000,
    calls=300,
    cold_starts=5,
    kills=2,
    upgraded_jobs=50,
    upgrades=5,
)
