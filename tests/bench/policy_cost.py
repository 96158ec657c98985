"""`python -m bench.policy_cost`: what one decision costs, by the number of rules that are looked at."""

from __future__ import annotations

import time

from jobworker import policy
from jobworker.identity import Role
from jobworker.jobs import JobSpec
from jobworker.policy import Effect, Policy, Request, Rule
from jobworker.rulebook import Rulebook

_WHO = "spiffe://example.org/user/alice"
_ROUNDS = 1_000


def main() -> None:
    start = policy.of_a_start(_WHO, Role.WRITER, JobSpec("/usr/bin/make", ("all",)), "standard", root=False)
    query = Request("Query", _WHO, Role.READER, _WHO, (("team", "build"),))
    for count in (1, 10, 100, 500):
        # The last one decides; those before it differ in what is looked at last.
        command = tuple(_start_rule(i) for i in range(count - 1))
        owner = tuple(
            Rule(f"r{i}", Effect.ALLOW, ("Query",), owners=(f"spiffe://example.org/user/u{i}-*",))
            for i in range(count - 1)
        )
        for name, rules, request in (("Start", command, start), ("Query", owner, query)):
            book = Rulebook(Policy((*rules, Rule("last", Effect.ALLOW))))
            print(f"{name}, {count} rules: {_fastest(book, request) * 1e6:.1f} us")


def _fastest(book: Rulebook, request: Request) -> float:
    """Seconds of one decision, the least of many: others take their share of the rest."""
    times = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        book.decide(request)
        times.append(time.perf_counter() - begin)
    return min(times)


def _start_rule(i: int) -> Rule:
    return Rule(
        f"r{i}", Effect.ALLOW, ("Start",), principals=(f"{_WHO[:-3]}*",), commands=((f"/usr/bin/c{i}-*", "..."),)
    )


if __name__ == "__main__":
    main()
