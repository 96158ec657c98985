"""The policy file: what it may say, the line and field of each mistake, and that no file is too odd."""

from __future__ import annotations

from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobworker.identity import Role
from jobworker.policy import MAX_RULES, RPCS, Cap, Effect, Policy, Rule
from jobworker.rulebook import Rulebook
from jobworker.settings import policy_file, yaml_reader
from jobworker.settings.yaml_reader import Mistakes

FULL = """\
version: 1
rules:
  - name: no-host
    deny: [Start]
    sandboxes: [host]
  - name: everything
    allow: [Start]
    principals: ["spiffe://example.org/user/ops-*"]
    roles: [WRITER]
    owner: [self, "*/user/ci"]
    labels: {team: build-*}
    users: [own, www-*]
    allow_root: yes
    sandboxes: [standard, host]
    commands:
      - [/usr/bin/make, "-j*", ""]
      - [/usr/bin/*, ...]
    env: [LANG, LC_*]
    workdirs: [/srv/build/**]
    stdin: true
    limits:
      memory: 1G
      pids: 100
      cpu: {max: 50%, required: true}
      swap: {required: true}
  - name: own.jobs
    allow: all
    owner: self
"""


def test_a_full_file_sets_every_field() -> None:
    no_host, everything, own = policy_file.load(FULL).rules
    assert no_host == Rule("no-host", Effect.DENY, ("Start",), sandboxes=("host",))
    assert own == Rule("own.jobs", Effect.ALLOW, owners=("self",))
    assert everything == Rule(
        name="everything",
        effect=Effect.ALLOW,
        rpcs=("Start",),
        principals=("spiffe://example.org/user/ops-*",),
        roles=(Role.WRITER,),
        owners=("self", "*/user/ci"),
        labels=(("team", "build-*"),),
        users=("", "www-*"),
        allow_root=True,
        sandboxes=("standard", "host"),
        commands=(("/usr/bin/make", "-j*", ""), ("/usr/bin/*", "...")),
        env=("LANG", "LC_*"),
        workdirs=("/srv/build/**",),
        stdin=True,
        limits=(
            Cap("memory", "1G"),
            Cap("pids", "100"),
            Cap("cpu", "50%", required=True),
            Cap("swap", "", required=True),
        ),
    )
    for field in fields(Rule):
        assert getattr(everything, field.name) != getattr(Rule("", Effect.DENY), field.name)


def rule(text: str) -> str:
    return f"version: 1\nrules:\n  - name: it\n    {text}\n"


MISTAKES = [
    ("", "line 1: the file: is empty"),
    ("version: 1", "line 1: rules: is missing"),
    ("rules: [{name: a, allow: all}]", "line 1: version: is missing"),
    ("version: 2\nrules: [{name: a, allow: all}]", "line 1: version: is not one that this agent knows"),
    ("version: 1\nrules: []", "line 2: rules: is empty; leave it out"),
    ("version: 1\nrules: {}", "line 2: rules: must be a list"),
    ("- 1", "line 1: the file: must be a mapping"),
    ("a: [", "line 1: the file: is not YAML"),
    ("a: 1\nb: !!python/object/apply:os.system [id]", "line 1: a: is not known here"),
    ("version: 1\nrules:\n- name: x\n  allow: all\n- x", "line 5: rules[1]: must be a mapping"),
    ("version: 1\nrules:\n- allow: all", "line 3: rules[0].name: is missing: denials are told by it"),
    (
        "version: 1\nrules:\n- {name: a, allow: all}\n- {name: a, allow: all}",
        "line 4: rules[1].name: a is the name of",
    ),
    ("version: 1\nversion: 1\nrules: [{name: a, allow: all}]", "line 2: version: is here twice"),
    (rule("allow: all\n    allow: all"), "line 5: rules[0].allow: is here twice"),
    (rule("alow: all"), "line 4: rules[0].alow: is not known here; for example allow"),
    (rule("roles: [READER]"), "line 3: rules[0].allow: is missing, or deny is"),
    (rule("allow: all\n    deny: all"), "line 5: rules[0].deny: is beside allow"),
    (rule("allow: Start"), "line 4: rules[0].allow: must be a list of calls, or the word all"),
    (rule("allow: []"), "line 4: rules[0].allow: is empty"),
    (rule("allow: [Strt]"), "line 4: rules[0].allow[0]: 'Strt' is not one of"),
    (rule("allow: [1]"), "line 4: rules[0].allow[0]: must be text"),
    (
        rule("allow: all\n    principals: [alice]"),
        "line 5: rules[0].principals[0]: 'alice' is no principal's identity",
    ),
    (rule("allow: all\n    principals: alice"), "line 5: rules[0].principals: must be a list"),
    (rule("allow: all\n    principals: []"), "line 5: rules[0].principals: is empty"),
    (rule("allow: all\n    roles: [ADMIN]"), "line 5: rules[0].roles[0]: 'ADMIN' is not one of READER, WRITER"),
    (rule("allow: all\n    owner: me"), "line 5: rules[0].owner: 'me' is no principal's identity"),
    (rule("allow: all\n    labels: {tier: 1}"), "line 5: rules[0].labels.tier: must be text"),
    (rule("allow: all\n    labels: {}"), "line 5: rules[0].labels: is empty"),
    (rule("allow: all\n    users: [mail]"), "line 5: rules[0].users: is about what is started"),
    (
        rule("allow: [Start, Stop]\n    commands: [[/bin/ls]]"),
        "line 5: rules[0].commands: is about what is started",
    ),
    (
        rule("deny: [Start]\n    commands: [[/bin/rm, ...]]"),
        "line 5: rules[0].commands: can't be denied one by one",
    ),
    (rule("deny: [Start]\n    env: [LD_PRELOAD]"), "line 5: rules[0].env: can't be denied one by one"),
    (rule("deny: [Start]\n    allow_root: true"), "line 5: rules[0].allow_root: means nothing where nothing"),
    (rule("deny: [Start]\n    limits: {pids: 1}"), "line 5: rules[0].limits: means nothing where nothing"),
    (rule("deny: [List]\n    labels: {a: b}"), "line 4: rules[0].deny: List shows what may be queried"),
    (rule("allow: [Start]\n    allow_root: maybe"), "line 5: rules[0].allow_root: is neither true nor false"),
    (
        rule("allow: [Start]\n    sandboxes: [lax]"),
        "line 5: rules[0].sandboxes[0]: 'lax' is not one of host, standard",
    ),
    (
        rule("allow: [Start]\n    commands: [/bin/ls]"),
        "line 5: rules[0].commands[0]: must be a list of the command",
    ),
    (
        rule("allow: [Start]\n    commands: [[ls]]"),
        "line 5: rules[0].commands[0][0]: 'ls' is not an absolute path",
    ),
    (
        rule("allow: [Start]\n    commands: [[/a/../b]]"),
        "rules[0].commands[0][0]: '/a/../b' is not an absolute path in",
    ),
    (rule("allow: [Start]\n    commands: [[/a, ..., b]]"), "line 5: rules[0].commands[0]: has ... elsewhere than"),
    (rule("allow: [Start]\n    commands: [[/a, 1]]"), "line 5: rules[0].commands[0][1]: must be text"),
    (
        rule("allow: [Start]\n    workdirs: [/**/a]"),
        "line 5: rules[0].workdirs[0]: has ** elsewhere than as its last",
    ),
    (rule("allow: [Start]\n    limits: {memory: 1GB}"), "line 5: rules[0].limits.memory: '1GB' is not a size"),
    (
        rule("allow: [Start]\n    limits: {mem: 1G}"),
        "line 5: rules[0].limits.mem: is not a limit; for example memory",
    ),
    (rule("allow: [Start]\n    limits: {pids: {}}"), "line 5: rules[0].limits.pids: says nothing"),
    (
        rule("allow: [Start]\n    limits: {swap: 1G}"),
        "line 5: rules[0].limits.swap: is nothing without limits.memory",
    ),
    (
        rule("allow: &all all\n    labels: &a {a: b}\n    owner: *all"),
        "line 4: rules[0].owner: 'all' is no principal",
    ),
    ("version: 1\nrules: &r [*r]", "line 2: rules[0]: must be a mapping"),
    ("version: 1\nrules: [&a {name: a, allow: all}, *a]", "line 2: rules[1]: is an alias"),
    ("[" * 5000, "line 1: the file: is nested too deep"),
    (" " * (yaml_reader.MAX_FILE_BYTES + 1), "line 1: the file: is larger than"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[said[:60] for _, said in MISTAKES])
def test_a_mistake_is_told_by_line_and_field(text: str, said: str) -> None:
    with pytest.raises(Mistakes) as caught:
        policy_file.load(text)
    assert said in str(caught.value)


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines() -> None:
    with pytest.raises(Mistakes) as caught:
        policy_file.load("version: 3\nrules:\n- {name: A, allow: [X]}\n- {name: b, deny: no}\n")
    assert [mistake.line for mistake in caught.value.mistakes] == [1, 3, 3, 4]


def test_more_rules_than_there_may_be() -> None:
    rules = "".join(f"- {{name: r{i}, allow: all}}\n" for i in range(MAX_RULES + 1))
    with pytest.raises(Mistakes, match="more than 500"):
        policy_file.load(f"version: 1\nrules:\n{rules}")


KEYS = st.sampled_from(
    (*policy_file._RULE, "memory", "pids", "max", "required", "version", "rules", "x"),
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*RPCS, "all", "self", "own", "host", "*", "/a/*", "/**", "...", "spiffe://a/user/b", "1G"])
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12
)


def read(text: str) -> Policy | None:
    """The policy; None if there are mistakes, each with its place."""
    try:
        return policy_file.load(text)
    except Mistakes as error:
        found = error.mistakes
    assert found
    assert all(mistake.line >= 1 and mistake.field for mistake in found)
    return None


@given(st.lists(st.dictionaries(KEYS, TREES, max_size=6), max_size=3))
def test_any_tree_is_a_policy_or_has_mistakes(rules: list[object]) -> None:
    """And what is a policy can be asked."""
    made = read(yaml.safe_dump({"version": 1, "rules": rules}))
    if made:
        Rulebook(made)


@given(st.text(max_size=60) | st.text("-:[]{}&*!|>'\"#%@`,? \n\tab1", max_size=60))
def test_any_text_is_a_policy_or_has_mistakes(text: str) -> None:
    read(text)


@given(st.integers(0, len(FULL)), st.integers(0, len(FULL)), st.text(max_size=3))
def test_any_damage_makes_a_policy_or_mistakes(one: int, other: int, text: str) -> None:
    start, end = sorted((one, other))
    made = read(FULL[:start] + text + FULL[min(end, start + 8) :])
    if made:
        Rulebook(made)
