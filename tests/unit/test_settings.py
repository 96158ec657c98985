"""The configuration file: what it may say, and what the refusals name."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobworker import codec
from jobworker.settings import effective, load, schema
from jobworker.settings.yaml_reader import Mistakes

FULL = """
state_dir: /var/lib/jobworker
listen: 0.0.0.0:7443
log_level: warning
gateway_uid: 990
policy: /etc/jobworker/policy.yaml
limits: /etc/jobworker/limits.yaml
tls:
  ca: /etc/jobworker/ca.pem
  cert: /etc/jobworker/server.pem
  key: /etc/jobworker/server.key
  role_oid: 1.3.6.1.4.1.32473.7
  crl: /etc/jobworker/lists.pem
  stale_crl: allow
  certificates:
    key_types: [rsa, ecdsa]
    min_rsa_bits: 3072
    min_ecdsa_bits: 384
    hashes: [sha384]
    client_usages: [1.3.6.1.4.1.32473.5]
    agent_usages: [serverAuth]
    max_client_life: 90d
    max_agent_life: 365d
  revoked: /etc/jobworker/revoked.txt
jobs:
  segment_size: 1M
  default_pids: 100
  max_cpu: 150%
  max_memory: 2G
  default_memory: 64M
  max_jobs_memory: 3G
  max_pids: 200
  max_stdin: 8G
  max_active: 10
  open_files: 4096
  keep_ended: 7
  compress_logs: true
  keep_log: 0
  keep_logs: 30G
  keep_records: 64M
  keep_for: 12h
  first_uid: 100000
  uid_count: 17
  default_path: /bin
  cgroup_parent: /system.slice/jobs
  kill_wait: 3s
quotas:
  streams: 10
  calls: 5
  calls_per_second: 50
  calls_burst: 100
  active_jobs: 4
  jobs_memory: 1G
isolation:
  default: strict
  missing: report
  writable: [/srv/build/, /var/cache/jobs]
metrics:
  listen: 127.0.0.1:7444
  plain_http: true
  basic_auth_users: {prometheus: $2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW}
  job_series: 20
tracing:
  endpoint: https://collector.example.org:4317
  ratio: 12.5%
audit:
  max_size: 64M
  keep: 3
  required: true
"""


def test_a_full_file_sets_every_field() -> None:
    settings = load.load(FULL)
    assert settings.jobs.max_cpu_millis == 1500
    assert settings.jobs.segment_bytes == 1 << 20
    assert settings.jobs.kill_wait_ms == 3000
    assert settings.tls.certificates.agent_usages == ("1.3.6.1.5.5.7.3.1",)
    assert settings.tls.certificates.max_client_life_ms == 90 * 86_400_000
    assert settings.isolation.writable == ("/srv/build", "/var/cache/jobs")
    defaults = schema.Settings("", "", schema.TlsSettings("", "", ""))
    for part, default in (
        (settings, defaults),
        (settings.tls, defaults.tls),
        (settings.tls.certificates, defaults.tls.certificates),
        (settings.jobs, defaults.jobs),
        (settings.quotas, defaults.quotas),
        (settings.isolation, defaults.isolation),
        (settings.metrics, defaults.metrics),
        (settings.audit, defaults.audit),
        (settings.tracing, defaults.tracing),
    ):
        for field in fields(part):
            if field.name == "host_for":
                # Not beside a policy.
                continue
            assert getattr(part, field.name) != getattr(default, field.name), f"{field.name} can't be set"
    assert codec.loads(schema.Settings, codec.dumps(settings)) == settings


def test_what_is_none_is_written_as_the_reference_says() -> None:
    said = load.load(
        "state_dir: /s\nlisten: 127.0.0.1:0\npolicy: ''\nlimits: ''\n"
        "tls: {ca: /a, cert: /b, key: /c, crl: '', revoked: '',"
        " certificates: {max_client_life: 0, max_agent_life: 0}}\n"
        "jobs: {max_cpu: 0, max_memory: 0, default_memory: 0, max_jobs_memory: 0, max_stdin: 0, keep_log: 0,"
        " keep_logs: 0, keep_records: 0, keep_for: 0, cgroup_parent: ''}\n"
        "quotas: {active_jobs: 0, jobs_memory: 0, calls_per_second: 0}\n"
        "metrics: {listen: ''}\ntracing: {endpoint: '', ratio: 0}\n"
    )
    jobs, certificates = said.jobs, said.tls.certificates
    assert (said.policy, said.limits, said.tls.crl, said.tls.revoked, jobs.cgroup_parent) == ("",) * 5
    assert (said.metrics.listen, said.tracing.endpoint) == ("", "")
    assert (jobs.max_cpu_millis, jobs.max_memory_bytes, jobs.keep_ms, jobs.keep_records_bytes) == (0,) * 4
    assert (certificates.max_client_life_ms, certificates.max_agent_life_ms) == (0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jobs: {keep_log: false}", "jobs.keep_log: must be text, or 0 for none; for example 256M"),
        ("jobs: {max_cpu: 50}", "jobs.max_cpu: must be text"),
        ("jobs: {max_cpu: '50'}", "jobs.max_cpu: '50' is not a percentage of one CPU; for example 50%"),
        ("jobs: {segment_size: 1e9G}", "jobs.segment_size: '1e9G' is not a size; for example 256M"),
        ("jobs: {segment_size: 2G}", "jobs.segment_size: '2G' is larger than 1G"),
        ("jobs: {keep_log: 100}", "jobs.keep_log: must be text, or 0 for none; for example 256M"),
        ("jobs: {segment: 1M}", "jobs.segment: is not known here; for example segment_size"),
        ("lisen: 127.0.0.1:1", "lisen: is not known here; for example listen"),
        ("listen: example.org", "listen: 'example.org' is not ADDRESS:PORT, where an IPv6 address is"),
        ("listen: '::1:7443'", "is not ADDRESS:PORT"),
        ("listen: ':::7443'", "is not ADDRESS:PORT"),
        ("listen: '[[::1]]:7443'", "is not ADDRESS:PORT"),
        ("listen: '1.2.3.4]:80'", "is not ADDRESS:PORT"),
        ("listen: '[1.2.3.4]:80'", "is not ADDRESS:PORT"),
        ("listen: 127.0.0.1:99999", "is not ADDRESS:PORT"),
        ("tls: {ca: ca.pem}", "tls.ca: 'ca.pem' is not an absolute path"),
        ("tls: {role_oid: 1.3.99999999999}", "tls.role_oid"),
        ("jobs: {max_active: true}", "jobs.max_active: True is not a number"),
        ("jobs: {cgroup_parent: /a/../b}", "jobs.cgroup_parent"),
        ("log_level: loud", "log_level: 'loud' is not one of"),
        ("metrics: {listen: '0.0.0.0:1', plain_http: true}", "metrics.plain_http: needs metrics.listen on a loop"),
        ("metrics: {job_series: 201}", "metrics.job_series: 201 is not a number between 0 and 200"),
        ("metrics: {basic_auth_users: [x]}", "metrics.basic_auth_users: must be a mapping of names to hashes"),
        ("metrics: {basic_auth_users: {'a:b': x}}", "metrics.basic_auth_users: 'a:b' is not a name"),
        ("metrics: {basic_auth_users: {a: secret}}", "metrics.basic_auth_users.a: is not a hash by bcrypt"),
        (
            "metrics: {basic_auth_users: {a: $2y$15$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW}}",
            "metrics.basic_auth_users.a: is not a hash by bcrypt of a cost up to 14",
        ),
        ("metrics: {plain_http: 1}", "metrics.plain_http: 1 is neither true nor false"),
        ("quotas: {streams: 2001}", "quotas.streams: 2001 is not a number between 1 and 2000"),
        ("quotas: {calls: 0}", "quotas.calls: 0 is not a number between 1 and 1024"),
        ("quotas: {calls_burst: 49}", "quotas.calls_burst: 49 is less than calls_per_second"),
        ("jobs: {uid_count: 10}", "jobs.uid_count: 10 is less than the jobs that are kept and those that run"),
        ("jobs: {keep_ended: 100000}", "jobs.uid_count: 17 is less"),
        ("quotas: {active_jobs: 11}", "quotas.active_jobs: 11 is more than all principals may have together"),
        ("quotas: {jobs_memory: 5}", "quotas.jobs_memory: must be text, or 0 for none; for example 256M"),
        ("quotas: {rate: 5}", "quotas.rate: is not known here; there are streams, calls, calls_per_second"),
        ("audit: {max_size: 1K}", "audit.max_size: 1K is not between 256K and 64G; for example 256K"),
        ("audit: {max_size: 5}", "audit.max_size: must be text; for example 32M"),
        ("audit: {keep: 0}", "audit.keep: 0 is not a number between 1 and 10000"),
        ("tracing: {ratio: 10}", "tracing.ratio: 10 is not a share between 0% and 100%; for example 10%"),
        ("tracing: {ratio: 100.1%}", "tracing.ratio: '100.1%' is not a share"),
        ("tracing: {endpoint: localhost:4317}", "is not http://ADDRESS:PORT or https://HOST:PORT"),
        ("tracing: {endpoint: 'http://127.0.0.1'}", "for example http://127.0.0.1:4317"),
        ("tracing: {endpoint: 'https://a:0'}", "tracing.endpoint: 'https://a:0' is not"),
        ("tracing: {endpoint: 'https://a:65536'}", "tracing.endpoint: 'https://a:65536' is not"),
        ("tracing: {endpoint: 'https://me:secret@a:1'}", "is not http://ADDRESS:PORT or https://HOST:PORT"),
        ("tracing: {endpoint: 'https://a:1/v1/traces'}", "is not http://ADDRESS:PORT or https://HOST:PORT"),
        ("tracing: {endpoint: 'http://collector:1'}", "in the clear, which is for a loopback address only"),
        ("tracing: {endpoint: 'http://[::2]:1'}", "in the clear, which is for a loopback address only"),
        ("audit: {required: maybe}", "audit.required: 'maybe' is neither true nor false"),
        ("isolation: {default: lax}", "isolation.default: 'lax' is not one of host, standard, strict"),
        ("isolation: {missing: ignore}", "isolation.missing: 'ignore' is not one of refuse, report"),
        ("isolation: {writable: /srv}", "isolation.writable: must be a list"),
        (
            "jobs: {default_pids: 0100}",
            "jobs.default_pids: '0100' is 64 to some and something else to others; write it in",
        ),
        ("jobs: {max_active: 1:30}", "jobs.max_active: '1:30' is 90 to some"),
        ("isolation: {writable: [srv]}", "isolation.writable[0]: 'srv' is not an absolute path"),
        ("isolation: {writable: [/a, /b/..]}", "isolation.writable[1]: / holds /tmp, of which each job"),
        (
            "isolation: {writable: [/var]}",
            "isolation.writable[0]: /var holds /var/tmp, of which each job has its own",
        ),
        ("isolation: {writable: [/proc]}", "isolation.writable[0]: /proc holds /proc"),
        ("isolation: {host_for: [1]}", "isolation.host_for[0]: must be text"),
        (
            "isolation: {host_for: ['*/user/ops-*', alice]}",
            "line 1: isolation.host_for[1]: 'alice' is no principal's identity, which begins with spiffe://",
        ),
        ("jobs: [1]", "jobs: must be a mapping"),
        ("- 1", "the file: must be a mapping"),
        ("a: [", "the file: is not YAML"),
        ("x: !!python/object/apply:os.system [id]", "x: is not known here"),
        (
            "policy: !!python/name:os.system",
            "policy: is not what it looks like: could not determine a constructor",
        ),
        (
            "state_dir: 2026-13-45",
            "state_dir: is not what it looks like: month must be in 1..12; put it in quotes",
        ),
        ("log_level: info\nlog_level: error", "line 2: log_level: is here twice"),
        ("isolation: {writable: [&a /srv, *a]}", "isolation.writable[1]: is an alias"),
        ("isolation: {writable: [[/srv]]}", "isolation.writable[0]: must be text; for example /srv/build"),
        ("isolation: {writable: {a: /srv}}", "isolation.writable: must be a list"),
        ("jobs:", "jobs: must be a mapping of names to values; for example name: value"),
        ("state_dir:", "state_dir: must be text; for example /var/lib/jobworker"),
    ],
)
def test_a_bad_file_is_explained_by_field(text: str, said: str) -> None:
    with pytest.raises(Mistakes) as caught:
        load.load(text, load.load(FULL))
    assert said in str(caught.value)


def test_every_mistake_is_told_at_its_line() -> None:
    text = """\
lisen: 0.0.0.0:7443
tls:
  ca: ca.pem
  cert: /cert.pem
jobs:
  max_cpu: 50
  default_pids: 0
isolation:
  writable:
    - /srv
    - srv
"""
    with pytest.raises(Mistakes) as caught:
        load.load(text)
    assert [(each.line, each.field) for each in caught.value.mistakes] == [
        (1, "lisen"),
        (1, "state_dir"),
        (1, "listen"),
        (3, "tls.ca"),
        (3, "tls.key"),
        (6, "jobs.max_cpu"),
        (7, "jobs.default_pids"),
        (11, "isolation.writable[1]"),
    ]
    # And says how it would be right.
    assert all(each.example for each in caught.value.mistakes)


def test_what_does_not_go_together_is_told_where_it_is() -> None:
    text = (
        "quotas:\n  calls_burst: 49\nmetrics:\n  listen: 0.0.0.0:1\n  plain_http: true\ntls: {stale_crl: refuse}\n"
    )
    base = schema.Settings("/s", "127.0.0.1:1", schema.TlsSettings("/a", "/b", "/c"))
    with pytest.raises(Mistakes) as caught:
        load.load(text, base)
    told = [(each.line, each.field) for each in caught.value.mistakes]
    assert told == [(2, "quotas.calls_burst"), (5, "metrics.plain_http"), (6, "tls.stale_crl")]


@given(st.text(max_size=60) | st.sampled_from(["&a [*a]", "a: &b {c: *b}", "? ? ?", "--- \n--- ", "\ud800", "\0"]))
def test_no_file_is_too_odd(text: str) -> None:
    with pytest.raises(Mistakes):
        load.load(text)


def test_an_empty_file_leaves_all_as_it_is() -> None:
    base = load.load(FULL)
    assert load.load("", base) == load.load("# nothing\n", base) == base


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4317", "http://[::1]:1", "https://[2001:db8::1]:4317"])
def test_traces_go_to_a_collector_on_this_host_or_over_tls(endpoint: str) -> None:
    made = load.load(f"tracing: {{endpoint: '{endpoint}', ratio: 0%}}", load.load(FULL)).tracing
    assert made == schema.TracingSettings(endpoint, 0)


def test_who_may_have_the_profile_host_is_said_in_one_place() -> None:
    host_for = "isolation: {host_for: ['spiffe://example.org/user/ops-*']}"
    without = FULL.replace("policy: /etc/jobworker/policy.yaml\n", "")
    assert load.load(host_for, load.load(without)).isolation.host_for == ("spiffe://example.org/user/ops-*",)
    with pytest.raises(Mistakes, match=r"isolation\.host_for: is nothing beside a policy"):
        load.load(host_for, load.load(FULL))


def test_what_is_needed_is_named() -> None:
    with pytest.raises(Mistakes, match="listen: is missing"):
        load.load("state_dir: /x")


def test_canonical_settings_are_written_whole(tmp_path: object) -> None:
    path = f"{tmp_path}/settings.json"
    settings = load.load(FULL)
    schema.write(settings, path)
    assert schema.read(path) == settings


def test_each_setting_has_a_value_and_an_origin() -> None:
    settings, lines = load.read(FULL)
    shown = {each.key: each for each in effective.all_of(settings, lines)}
    given_lines = FULL.splitlines()
    for key, each in shown.items():
        if key == "isolation.host_for":
            assert (each.value, each.line) == ("[]", None)
            continue
        assert each.line, key
        name, _, _ = given_lines[each.line - 1].strip().partition(":")
        assert name == key.rpartition(".")[2]


def test_what_is_shown_makes_the_same_settings_again() -> None:
    for text in (FULL, "{state_dir: '/a: b', listen: '[::1]:1', tls: {ca: /c, cert: '/#', key: /k}}"):
        settings, lines = load.read(text)
        again: dict[str, object] = {}
        for each in effective.all_of(settings, lines):
            *path, key = each.key.split(".")
            place: dict[str, object] = again
            for step in path:
                place = place.setdefault(step, {})  # type: ignore[assignment] # only sections are on the way
            # Beside a policy even an empty list of these says something.
            if each.value is not None and key not in ("host_for", "stale_crl"):
                place[key] = yaml.safe_load(each.value)
        made = load.load(yaml.safe_dump(again))
        assert replace(made, tls=replace(made.tls, stale_crl=settings.tls.stale_crl)) == settings
