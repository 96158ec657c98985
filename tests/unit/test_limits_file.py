"""The limits file: what it may say, the line and field of each mistake, and that no file is too odd."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobworker import codec
from jobworker.errors import InvalidField
from jobworker.limits import BY_NAME, MAX_LIMIT_PROFILES, LimitProfile, LimitProfiles, Limits
from jobworker.settings import limits_file
from jobworker.settings.yaml_reader import Mistakes

FULL = """\
version: 1
default: small
caps: {cpu: 400%, memory: 8G, pids: 4096, cpuset: 0-3}
profiles:
  small:
    cpu: 50%
    memory: 256M
    swap: 0
    pids: 64
  build-x86:
    cpu: 200%
    cpu_weight: 50
    cpuset: 2,3
    io_read: 10M/s
    io_write: 20M
    io_read_ops: 100
    io_write_ops: 200
"""


def test_a_full_file() -> None:
    small = Limits(cpu_millis=500, memory_bytes=256 << 20, swap_bytes=0, pids=64)
    build = Limits(
        cpu_millis=2000,
        cpu_weight=50,
        cpuset="2-3",
        io_read_bps=10 << 20,
        io_write_bps=20 << 20,
        io_read_ops=100,
        io_write_ops=200,
    )
    made = limits_file.load(FULL)
    assert made == LimitProfiles(
        (LimitProfile("small", small), LimitProfile("build-x86", build)),
        "small",
        Limits(cpu_millis=4000, memory_bytes=8 << 30, pids=4096, cpuset="0-3"),
    )
    made.check()
    assert codec.loads(LimitProfiles, codec.dumps(made)) == made
    assert {name for profile in made.profiles for name, _ in profile.limits.given()} == BY_NAME.keys()


def profile(text: str) -> str:
    return f"version: 1\nprofiles:\n  small:\n    {text}\n"


MISTAKES = [
    ("", "line 1: the file: is empty, which would take all profiles away"),
    ("profiles: {a: {pids: 1}}", "line 1: version: is missing"),
    ("version: 2", "line 1: version: is not one that this agent knows"),
    ("version: 1\nprofile: {}", "line 2: profile: is not known here; for example profiles"),
    ("version: 1\nprofiles: [small]", "line 2: profiles: must be a mapping"),
    ("version: 1\nprofiles:\n  Small: {pids: 1}", "line 3: profiles.Small: 'Small' is not made of up to 63"),
    ("version: 1\nprofiles:\n  a: {pids: 1}\n  a: {pids: 2}", "line 4: profiles.a: is here twice"),
    ("version: 1\nprofiles:\n  a: {}", "line 3: profiles.a: says nothing"),
    (profile("memory: 1GB"), "line 4: profiles.small.memory: '1GB' is not a size; for example 256M"),
    (profile("memory: 1"), "line 4: profiles.small.memory: 1 is not between 1M and 1024T"),
    (profile("cpu: 50"), "line 4: profiles.small.cpu: '50' is not a percentage of one CPU; for example 50%"),
    (profile("cpu: [50%]"), "line 4: profiles.small.cpu: '' is not a percentage"),
    (profile("mem: 1G"), "line 4: profiles.small.mem: is not a limit; for example memory"),
    (profile("swap: 1G"), "line 4: profiles.small.swap: is nothing without memory"),
    (
        "version: 1\ndefault: big\n" + profile("pids: 1")[11:],
        "line 2: default: 'big' is none of the profiles: small",
    ),
    ("version: 1\ndefault: big", "line 2: default: 'big' is none of the profiles: there are none"),
    (f"{profile('pids: 100')}caps: {{pids: 50}}", "line 4: profiles.small.pids: 100 is more than caps.pids lets"),
    (
        f"{profile('cpuset: 0-3')}caps: {{cpuset: 0-2}}",
        "line 4: profiles.small.cpuset: 0-3 is more than caps.cpuset",
    ),
    ("version: 1\nprofiles: {a: &x {pids: 1}, b: *x}", "line 2: profiles.b: is an alias"),
    ("version: 1\nprofiles: {a: !!python/object/apply:os.system [id]}", "line 2: profiles.a: must be a mapping"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[said[:60] for _, said in MISTAKES])
def test_a_mistake_is_told_by_line_and_field(text: str, said: str) -> None:
    with pytest.raises(Mistakes) as caught:
        limits_file.load(text)
    assert said in str(caught.value)


def test_more_profiles_than_there_may_be() -> None:
    profiles = "".join(f"  p{i}: {{pids: 1}}\n" for i in range(MAX_LIMIT_PROFILES + 1))
    with pytest.raises(Mistakes, match="has 65 items, more than 64"):
        limits_file.load(f"version: 1\nprofiles:\n{profiles}")


def test_more_than_fits_a_message() -> None:
    cpus = ",".join(map(str, range(0, 8000, 2)))
    with pytest.raises(Mistakes, match="holds more than the agent's processes can tell each other"):
        limits_file.load(f"version: 1\nprofiles:\n  a: {{cpuset: '{cpus}'}}\n  b: {{cpuset: '{cpus}'}}\n")


def test_root_looks_again_at_what_it_is_given() -> None:
    nothing, small = LimitProfile("small", Limits(pids=0)), LimitProfile("small", Limits(pids=1))
    for wrong in (
        LimitProfiles((nothing,)),
        LimitProfiles((LimitProfile("a b", Limits(pids=1)),)),
        LimitProfiles((LimitProfile("a", Limits(swap_bytes=1)),)),
        LimitProfiles((small,), "big"),
        LimitProfiles((small,) * (MAX_LIMIT_PROFILES + 1)),
        LimitProfiles(caps=Limits(pids=0)),
    ):
        with pytest.raises(InvalidField):
            wrong.check()


KEYS = st.sampled_from(("small", "x", "A b", "version", "default", "caps", "profiles", "mem", *BY_NAME))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1G", "50%", "0-3", "10M/s", "small", "64"])
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12
)


def read(text: str) -> None:
    """What the file makes holds, or each mistake has its place."""
    try:
        limits_file.load(text).check()
    except Mistakes as error:
        found = error.mistakes
    else:
        return
    assert found
    assert all(mistake.line >= 1 and mistake.field for mistake in found)


@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_any_tree_is_read_or_has_mistakes(tree: dict[str, object]) -> None:
    read(yaml.safe_dump({"version": 1} | tree))


@given(st.integers(0, len(FULL)), st.integers(0, 8), st.text("-:[]{}&*!|>'\"#%@`,? \n\tab1", max_size=4))
def test_any_damage_is_read_or_has_mistakes(start: int, length: int, text: str) -> None:
    read(FULL[:start] + text + FULL[start + length :])
