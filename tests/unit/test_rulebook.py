"""Deciding by rules: each kind of condition, the order, and that no input is too odd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker import codec, policy
from jobworker.errors import NO_RULE, InvalidField, JobNotFound, PolicyDenied
from jobworker.identity import Role
from jobworker.jobs import JobSpec
from jobworker.limits import KINDS, Limits
from jobworker.policy import NOTHING, RPCS, UNMATCHED, Cap, Effect, Policy, Request, Rule
from jobworker.rulebook import Rulebook
from jobworker.sandbox import PROFILES

ALICE, BOB = "spiffe://example.org/user/alice", "spiffe://example.org/user/bob"
SPEC = JobSpec("/usr/bin/make", ("all",))


def start(spec: JobSpec = SPEC, *, principal: str = ALICE, root: bool = False, **changes: Any) -> Request:
    return policy.of_a_start(principal, Role.WRITER, replace(spec, **changes), "standard", root=root)


def query(owner: str = ALICE, *labels: tuple[str, str], rpc: str = "Query", principal: str = ALICE) -> Request:
    return Request(rpc, principal, Role.READER, owner, labels)


def allows(rule: Rule, request: Request) -> bool:
    return Rulebook(Policy((rule,))).decide(request).allowed


def allow(**conditions: Any) -> Rule:
    return Rule("it", Effect.ALLOW, **conditions)


# A rule with one condition, a request that meets it, and one that does not.
CONDITIONS = {
    "rpcs": (allow(rpcs=("Query",)), query(), query(rpc="Stream")),
    "roles": (allow(roles=(Role.WRITER,)), start(), query()),
    "principals": (allow(principals=(ALICE,)), start(), start(principal=BOB)),
    "principals, pattern": (allow(principals=("*/user/al*",)), start(), start(principal=BOB)),
    "owner": (allow(owners=(BOB,)), query(BOB), query()),
    "owner self": (allow(owners=("self",)), query(), query(BOB)),
    "labels": (allow(labels=(("team", "b*"),)), query(ALICE, ("team", "build")), query(ALICE, ("team", "x"))),
    "labels, all": (
        allow(labels=(("a", "1"), ("b", "2"))),
        query(ALICE, ("a", "1"), ("b", "2")),
        query(ALICE, ("a", "1")),
    ),
    "labels of a start": (allow(labels=(("team", "b"),)), start(labels=(("team", "b"),)), start()),
    "users": (allow(users=("www-*",)), start(user="www-data"), start(user="mail")),
    "users, own": (allow(users=("",)), start(), start(user="mail")),
    "users, not own": (allow(users=("*",)), start(user="mail"), start()),
    "no users": (allow(), start(), start(user="mail")),
    "allow_root": (allow(users=("*",), allow_root=True), start(user="toor", root=True), start()),
    "no allow_root": (allow(users=("*",)), start(user="toor"), start(user="toor", root=True)),
    "sandboxes": (allow(sandboxes=("strict",)), start(sandbox="strict"), start()),
    "sandboxes, host": (allow(sandboxes=("host",)), start(sandbox="host"), start()),
    "no sandboxes": (allow(), start(sandbox="strict"), start(sandbox="host")),
    "commands": (allow(commands=(("/usr/bin/make", "all"),)), start(), start(args=("all", "more"))),
    "commands, fewer": (allow(commands=(("/usr/bin/make", "all"),)), start(), start(args=())),
    "commands, rest": (
        allow(commands=(("/usr/bin/make", "all", "..."),)),
        start(args=("all", "x")),
        start(args=()),
    ),
    "commands, path": (allow(commands=(("/usr/*/make", "..."),)), start(), start(command="/usr/bin/x/make")),
    "commands, up": (allow(commands=(("/usr/bin/**", "..."),)), start(), start(command="/usr/bin/../bin/make")),
    "commands, dot": (allow(commands=(("/usr/bin/**", "..."),)), start(), start(command="/usr/bin/./make")),
    "commands, twice": (allow(commands=(("/usr/**", "..."),)), start(), start(command="/usr//bin/make")),
    "commands, name": (allow(commands=(("/**", "..."),)), start(), start(command="make")),
    "commands, slash": (allow(commands=(("/usr/bin/*", "..."),)), start(), start(command="/usr/bin/")),
    "commands, env": (allow(commands=(("/**", "..."),)), start(), start(env=(("LD_PRELOAD", "/x"),))),
    "commands, workdir": (allow(commands=(("/**", "..."),)), start(), start(workdir="/srv")),
    "commands, stdin": (allow(commands=(("/**", "..."),)), start(), start(stdin=b"x")),
    "commands, stdin_open": (allow(commands=(("/**", "..."),)), start(), start(stdin_open=True)),
    "stdin": (allow(commands=(("/usr/**", "..."),), stdin=True), start(stdin=b"x"), start(command="/bin/sh")),
    "stdin, open": (
        allow(commands=(("/usr/**", "..."),), stdin=True),
        start(stdin_open=True),
        start(command="/bin/sh"),
    ),
    "env": (allow(env=("LC_*",)), start(env=(("LC_ALL", "C"),)), start(env=(("LC_ALL", "C"), ("PATH", "/x")))),
    "workdirs": (allow(workdirs=("/srv/*",)), start(workdir="/srv/a"), start(workdir="/srv/a/b")),
    "workdirs, deep": (allow(workdirs=("/srv/**",)), start(workdir="/srv/a/b"), start(workdir="/srv/../etc")),
    "workdirs, own": (allow(workdirs=("/srv/*",)), start(), start(workdir="/srv")),
    "limits": (
        allow(limits=(Cap("memory", "1G"),)),
        start(limits=Limits(memory_bytes=2**30)),
        start(limits=Limits(memory_bytes=2**30 + 1)),
    ),
    "limits, required": (
        allow(limits=(Cap("pids", required=True),)),
        start(limits=Limits(pids=7)),
        start(),
    ),
    "limits, cpus": (
        allow(limits=(Cap("cpuset", "0-3"),)),
        start(limits=Limits(cpuset="1,3")),
        start(limits=Limits(cpuset="3-4")),
    ),
}


@pytest.mark.parametrize(("rule", "meets", "does_not"), CONDITIONS.values(), ids=CONDITIONS.keys())
def test_conditions_of_rules_that_allow(rule: Rule, meets: Request, does_not: Request) -> None:
    assert allows(rule, meets)
    assert not allows(rule, does_not)


DENIALS = {
    "all": (Rule("no", Effect.DENY), start(), None),
    "rpcs": (Rule("no", Effect.DENY, ("Query",)), query(), start()),
    "principals": (Rule("no", Effect.DENY, principals=(ALICE,)), query(), query(principal=BOB)),
    "owner": (Rule("no", Effect.DENY, owners=(BOB,)), query(BOB), query()),
    "labels": (Rule("no", Effect.DENY, labels=(("secret", "*"),)), query(ALICE, ("secret", "yes")), query()),
    "users": (Rule("no", Effect.DENY, ("Start",), users=("*",)), start(user="mail"), start()),
    "users, own": (Rule("no", Effect.DENY, ("Start",), users=("",)), start(), start(user="mail")),
    "sandboxes": (Rule("no", Effect.DENY, ("Start",), sandboxes=("host",)), start(sandbox="host"), start()),
}


@pytest.mark.parametrize(("rule", "meets", "does_not"), DENIALS.values(), ids=DENIALS.keys())
def test_conditions_of_rules_that_deny(rule: Rule, meets: Request, does_not: Request | None) -> None:
    everything = Rule("yes", Effect.ALLOW, users=("", "*"), sandboxes=PROFILES)
    book = Rulebook(Policy((rule, everything)))
    assert (book.decide(meets).allowed, book.decide(meets).rule) == (False, "no")
    if does_not:
        assert (book.decide(does_not).allowed, book.decide(does_not).rule) == (True, "yes")


def test_the_first_that_matches_decides() -> None:
    rules = (
        Rule("bob", Effect.DENY, principals=(BOB,)),
        Rule("some", Effect.ALLOW, ("Query",)),
        Rule("none", Effect.DENY),
        Rule("never", Effect.ALLOW),
    )
    book = Rulebook(Policy(rules))
    assert [book.decide(query(principal=who)).rule for who in (BOB, ALICE)] == ["bob", "some"]
    assert book.decide(start()).rule == "none"
    assert [rule.name for rule, _ in book.explain(start())] == ["bob", "some", "none"]


def test_what_no_rule_matches_is_denied() -> None:
    assert Rulebook(NOTHING).decide(start()) == UNMATCHED
    assert not UNMATCHED.allowed
    assert NO_RULE in UNMATCHED.rule


def test_a_call_that_is_not_read_yet_is_let_through_if_any_request_of_it_could_be() -> None:
    """And then judged again."""
    unread = Request("Start", ALICE, Role.WRITER)
    assert allows(allow(rpcs=("Start",), commands=(("/bin/true",),)), unread)
    assert not allows(allow(rpcs=("Start",), principals=(BOB,)), unread)
    some = Rule("no", Effect.DENY, ("Start",), sandboxes=("host",))
    every = Rule("never", Effect.DENY, ("Start",))
    anything = Rule("yes", Effect.ALLOW)
    assert Rulebook(Policy((some, anything))).decide(unread).allowed
    assert Rulebook(Policy((every, anything))).decide(unread).rule == "never"
    secret = Rule("no", Effect.DENY, labels=(("secret", "*"),))
    assert Rulebook(Policy((secret, anything))).decide(Request("List", ALICE, Role.READER)).allowed


def test_what_a_job_is_held_to() -> None:
    caps = (Cap("memory", "1G"), Cap("pids", "100"), Cap("swap", "1M"), Cap("cpuset", "0-1"))
    decision = Rulebook(Policy((allow(limits=caps),))).decide(start(limits=Limits(pids=7, cpu_millis=500)))
    assert decision.limits == Limits(memory_bytes=2**30, pids=7, cpu_millis=500, cpuset="0-1")
    assert decision.filled == ("memory", "cpuset")
    assert decision.prescribed == ("memory", "pids", "swap", "cpuset")


def test_what_is_too_much_is_named() -> None:
    rule = allow(limits=(Cap("memory", "1G", required=True),))
    for limits, problem in (
        (Limits(), "limits.memory has to be asked for, at most 1G"),
        (Limits(memory_bytes=2**31), "limits.memory is 2G, more than 1G"),
    ):
        decision = Rulebook(Policy((rule, allow()))).decide(start(limits=limits))
        assert (decision.allowed, decision.problem) == (False, problem)


def test_a_profile_that_is_not_looked_up_yet_may_be_what_is_required() -> None:
    """The gateway knows its name alone; what is too much is so whatever the profile holds."""
    book = Rulebook(Policy((allow(limits=(Cap("memory", "1G", required=True),)),)))
    assert book.decide(start(profile="small")).allowed
    assert not book.decide(start(profile="small", limits=Limits(memory_bytes=2**31))).allowed


def test_who_may_not_query_a_job_is_not_told_of_it() -> None:
    rules = (
        Rule("own", Effect.ALLOW, owners=("self",)),
        Rule("look", Effect.ALLOW, ("Query",), principals=(BOB,)),
    )
    decide = Rulebook(Policy(rules)).decide
    assert policy.refusal(decide, query(rpc="Stop"), "id") is None
    hidden = policy.refusal(decide, query(BOB, rpc="Stop"), "id")
    assert isinstance(hidden, JobNotFound)
    assert isinstance(hidden.__cause__, PolicyDenied)
    seen = policy.refusal(decide, query(ALICE, rpc="Stop", principal=BOB), "id")
    assert isinstance(seen, PolicyDenied)
    assert (seen.rpc, seen.rule) == ("Stop", NO_RULE)


@pytest.mark.parametrize("sandbox", PROFILES)
def test_without_a_policy(sandbox: str) -> None:
    """Roles alone, and `host` for those who are named, or for all if it is the default."""
    book = Rulebook(policy.default(("*/user/al*",), sandbox))
    for principal in (ALICE, BOB):
        for rpc in RPCS[1:]:
            assert book.decide(Request(rpc, principal, Role.READER, BOB)).allowed
        for asked in ("", *PROFILES):
            request = policy.of_a_start(principal, Role.WRITER, replace(SPEC, sandbox=asked), sandbox, root=False)
            expected = request.sandbox != "host" or principal == ALICE or sandbox == "host"
            assert book.decide(request).allowed is expected
        assert not book.decide(start(principal=principal, user="mail")).allowed
    assert not Rulebook(policy.default((), "standard")).decide(start(sandbox="host")).allowed


ODD = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    [
        "",
        "*",
        "?",
        "[",
        "[!a]",
        "[z-a]",
        "/",
        "/**",
        "//",
        "/..",
        "...",
        "self",
        "\0",
        "\ud800",
        ALICE,
        "/usr/bin/make",
    ]
)
ODDS = st.lists(ODD, max_size=3).map(tuple)
ABSOLUTE = ODD.map(lambda text: f"/{text}")
PAIRS = st.lists(st.tuples(ODD, ODD), max_size=3).map(tuple)
CAPS = st.lists(
    st.sampled_from([Cap("memory", "1G"), Cap("pids", "", required=True), Cap("cpuset", "0-1")]), max_size=3
).map(tuple)
RULES = st.builds(
    Rule,
    name=ODD,
    effect=st.sampled_from(Effect),
    rpcs=st.lists(st.sampled_from(RPCS) | ODD, max_size=3).map(tuple),
    principals=ODDS,
    roles=st.lists(st.sampled_from(Role), max_size=2).map(tuple),
    owners=ODDS,
    labels=PAIRS,
    users=ODDS,
    allow_root=st.booleans(),
    sandboxes=ODDS | st.just(PROFILES),
    commands=st.lists(st.tuples(ABSOLUTE, ODD), max_size=2).map(tuple),
    env=ODDS,
    workdirs=st.lists(ABSOLUTE, max_size=2).map(tuple),
    stdin=st.booleans(),
    limits=CAPS,
)
SPECS = st.builds(
    JobSpec,
    command=ODD | ABSOLUTE,
    args=ODDS,
    env=PAIRS,
    workdir=ODD,
    labels=PAIRS,
    user=ODD,
    sandbox=ODD,
    stdin=st.binary(max_size=1),
)
REQUESTS = st.builds(
    Request,
    rpc=st.sampled_from(RPCS) | ODD,
    principal=ODD,
    role=st.sampled_from(Role),
    owner=st.none() | ODD,
    labels=PAIRS,
    spec=st.none() | SPECS,
    sandbox=st.sampled_from(PROFILES) | ODD,
    root=st.booleans(),
)


@given(st.lists(RULES, max_size=5), REQUESTS)
def test_any_rules_and_any_request(rules: list[Rule], request: Request) -> None:
    """Never an exception; the first rule that matches by itself decides; what none matches is denied."""
    book = Rulebook(Policy(tuple(rules)))
    alone = [Rulebook(Policy((rule,))).decide(request) for rule in rules]
    matching = [decision for decision in alone if decision.rule != NO_RULE]
    assert book.decide(request) == (matching[0] if matching else UNMATCHED)
    explained = list(book.explain(request))
    assert [problem for _, problem in explained[:-1]].count("") == 0
    assert bool(explained and not explained[-1][1]) is bool(matching)


@given(st.lists(RULES, max_size=3), REQUESTS)
def test_nothing_is_allowed_that_no_rule_allows(rules: list[Rule], request: Request) -> None:
    denying = tuple(replace(rule, effect=Effect.DENY) for rule in rules)
    assert not Rulebook(Policy(denying)).decide(request).allowed


@given(st.lists(RULES, max_size=3))
def test_canonical_rules_come_back(rules: list[Rule]) -> None:
    assert codec.loads(Policy, codec.dumps(Policy(tuple(rules)))).rules == tuple(rules)


@pytest.mark.parametrize(
    "rule",
    [
        allow(commands=((),)),
        allow(commands=(("make",),)),
        allow(workdirs=("srv",)),
        allow(limits=(Cap("memory", "many"),)),
        allow(limits=(Cap("nothing", "1"),)),
    ],
)
def test_rules_that_are_none(rule: Rule) -> None:
    with pytest.raises(InvalidField):
        Rulebook(Policy((rule,)))


def test_more_rules_than_there_may_be() -> None:
    with pytest.raises(InvalidField):
        Rulebook(Policy((allow(),) * (policy.MAX_RULES + 1)))


@pytest.mark.parametrize("pattern", ["*a*a*a*a*a*a*a*a*a*b", "?*?*?*?*?*?*?*?*b", "*[!b]*[!b]*[!b]*[!b]*[!b]*b"])
@pytest.mark.timeout(20)
def test_no_pattern_takes_for_ever(pattern: str) -> None:
    """The longest argument that there may be; with backtracking this would outlast the universe."""
    rule = allow(commands=(("/usr/bin/make", pattern),))
    assert not allows(rule, start(args=("a" * 131_000,)))


def test_all_kinds_of_limits_can_be_held() -> None:
    for kind in KINDS:
        maximum = "0-1" if kind.bounds is None else kind.show(kind.bounds[1])
        assert Rulebook(Policy((allow(limits=(Cap(kind.name, maximum),)),))).decide(start()).allowed
