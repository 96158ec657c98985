"""What `worker-client doctor` makes of what an agent tells of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobworker import __version__
from jobworker.cli import client_json, client_text
from jobworker.findings import Finding, by_reason, of_limits, warning

if TYPE_CHECKING:
    from jobworker.api.v1.job_worker_service_pb2 import GetAgentInfoResponse

# Clocks that differ by less do no harm, in seconds.
_SKEW = 5.0
# Whoever renews something has done so a day before it ends.
_SOON = 24 * 3600
_ON_ITS_HOST = "`worker-agent doctor` on its host tells why and what to do"
_DATES = (
    ("agent cert", "its certificate", "certificate_expires_at"),
    ("agent ca", "the first of the CAs that it checks clients with", "ca_expires_at"),
    ("agent crl", "the first of its revocation lists", "crl_expires_at"),
)


def findings(agent: GetAgentInfoResponse, before: float, after: float) -> Iterator[Finding]:
    """Check by check.

    Args:
        agent: what it answered.
        before: when it was asked, by this host's clock, in seconds of Unix time.
        after: when the answer was there.
    """
    yield _version(agent)
    yield _jobs(agent)
    yield from _limits(agent)
    yield from _sandbox(agent)
    yield from _clock(agent, before, after)
    for stale in agent.stale_files:
        told = f"the file of the {stale.what} has changed, and cannot be used: {stale.problem}"
        yield warning("stale", told, "mend the file; what was good before it is in force until then")
    for check, what, field in _DATES:
        if agent.HasField(field):  # type: ignore[arg-type] # one of its names
            yield _date(check, what, client_json.time(agent, field) or "", getattr(agent, field).seconds - after)


def _version(agent: GetAgentInfoResponse) -> Finding:
    told = f"version {client_text.versions(agent)} on {agent.hostname}, Linux {agent.kernel}"
    if agent.supervisor_version not in ("", agent.version):
        hint = "an upgrade has reached one half of it: reload jobworker-keeper, then restart jobworker-gateway"
        return warning("agent", told, hint)
    if agent.version == __version__:
        return Finding("agent", told)
    hint = "what only one of them knows is refused; bring both to one version"
    return warning("agent", f"{told}; this client is of version {__version__}", hint)


def _jobs(agent: GetAgentInfoResponse) -> Finding:
    told = f"{agent.active_jobs} active of at most {agent.max_active_jobs}"
    if agent.draining:
        return warning("jobs", "it takes no new jobs, since it was drained", "worker-client undrain")
    if agent.active_jobs >= agent.max_active_jobs:
        return warning("jobs", f"{told}: no other is taken", "wait for one to end, or stop one")
    return Finding("jobs", told)


def _limits(agent: GetAgentInfoResponse) -> Iterator[Finding]:
    lacking = [limit for limit in agent.limits if client_text.lacks(limit)]
    held = [limit for limit in agent.limits if limit not in lacking]
    yield from of_limits(
        agent.cgroup_mode,
        [(limit.detail, limit.name) for limit in lacking],
        [(limit.detail, limit.name) for limit in held if limit.detail],
        [limit.name for limit in held],
        _ON_ITS_HOST,
    )


def _sandbox(agent: GetAgentInfoResponse) -> Iterator[Finding]:
    lacking = [(part.missing_because, part.name) for part in agent.sandbox_parts if part.missing_because]
    for told in by_reason(lacking):
        yield warning("sandbox", f"cannot be applied: {told}", _ON_ITS_HOST)
    if not lacking:
        yield Finding("sandbox", f"all profiles; {agent.default_sandbox} unless another one is asked for")
    if not agent.user_per_job:
        yield warning("users", "all jobs share the agent's user, and reach each other", "run the agent as root")


def _clock(agent: GetAgentInfoResponse, before: float, after: float) -> Iterator[Finding]:
    if not agent.HasField("time"):
        return
    there = agent.time.seconds + agent.time.nanos / 1e9
    # It answered at some time between the two.
    ahead = there - after if there > after else there - before if there < before else 0.0
    if abs(ahead) < _SKEW:
        yield Finding("clock", f"the agent's and this host's differ by less than {_SKEW:g} s")
    else:
        way = "ahead of" if ahead > 0 else "behind"
        told = f"the agent's is {abs(ahead):.0f} s {way} this host's"
        yield warning("clock", told, "have both hosts keep time, by NTP: certificates' dates depend on it")


def _date(check: str, what: str, end: str, left: float) -> Finding:
    if left <= 0:
        return warning(check, f"{what} ended at {end}", "have it renewed at once")
    if left < _SOON:
        return warning(check, f"{what} ends at {end}, in {client_text.age(left)}", "have it renewed")
    return Finding(check, f"{what} is good until {end}")
