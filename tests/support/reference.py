"""The pages of docs/ that are made from the program: `make docs` writes them, and a test holds them to it."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import click

from jobworker.gateway.metrics_table import METRICS
from jobworker.settings import effective, load, schema
from jobworker.settings.sections import Parse
from support import api_reference, json_reference, manpages

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_WIDTH = 100

_COMMANDS = """\
# Commands

Made from the programs' own `--help` by `make docs`.
"""

_CONFIGURATION = """\
# Configuration

The agent's settings, `/etc/jobworker/agent.yaml`: YAML, read by a process without privileges. Made from the
program by `make docs`. `worker-agent config check FILE` says what is wrong with a file, line by line, and
`worker-agent config show FILE` what it makes, and where each setting comes from: a line, or the default. A key
that is not here is refused.

```yaml
state_dir: /var/lib/jobworker
listen: 0.0.0.0:7443
tls:
  ca: /etc/jobworker/tls/ca.pem
  cert: /etc/jobworker/tls/server.pem
  key: /etc/jobworker/tls/server.key
jobs:
  default_memory: 1G
  max_jobs_memory: 24G
```

Sizes are written as `64M` or `1G`, in powers of 1024; times as `500ms`, `30s`, `10m`, `2h`, `7d`; shares of a CPU
as `50%`, `250%`. Changes are taken with `systemctl reload jobworker-keeper` and a restart of the gateway; jobs go
on.
"""

_METRICS = """\
# Metrics

What `GET /metrics` of `metrics.listen` has, for Prometheus. Made from the program by `make docs`.

The agent serves HTTPS with its own certificate, to bearers of a client certificate of its CAs that is not revoked.
A scrape job for agents:

```yaml
scrape_configs:
  - job_name: jobworker
    scheme: https
    tls_config:
      ca_file: /etc/prometheus/jobworker/ca.pem
      cert_file: /etc/prometheus/jobworker/reader.pem
      key_file: /etc/prometheus/jobworker/reader.key
    file_sd_configs:
      - files: [/etc/prometheus/jobworker/*.json]
```

With `metrics.basic_auth_users`, names with hashes by bcrypt as in the exporter toolkit's `web.yml`, whoever has a
password of those gets in as well (`basic_auth` of the scrape job, with `ca_file` alone). Without TLS on loopback:
`metrics: {listen: 127.0.0.1:7444, plain_http: true}`.

Alerts, recording rules and a Grafana dashboard that stand on these are two files,
`ansible/roles/monitoring/files/jobworker.rules.yml` and `jobworker.dashboard.json`. The collection's role
`monitoring` puts them in place, and an installed agent has them in `share/jobworker/monitoring`. Both need a label
`host`, which the role's target files give. What to do about an alert:
[operations.md](operations.md#what-to-watch).

Totals of jobs, output, limits, cgroups and supervisors stand in the state directory, and go on over restarts and
deaths of any part; a power cut may take them back or to zero, as if a counter had been restarted. Those of calls
and quotas begin at zero with each gateway. While the supervisor is away its last totals are told, and
`jobworker_supervisor_up` is 0.

No label holds a principal. A job's id is a label with `metrics.job_series` only, for so many running jobs at once.

| name | type | labels | meaning |
|---|---|---|---|
"""


def commands() -> str:
    """docs/commands.md."""
    helps = (help_of(name, program, None) for name, program in manpages.PROGRAMS.items())
    return _COMMANDS + "".join(f"\n## {name}\n\n```text\n{text}\n```\n" for each in helps for name, text in each)


def help_of(name: str, command: click.Command, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """The help of a command and of those below it, by the words that call them."""
    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            if below and not below.hidden:
                yield from help_of(each, below, context)


def configuration() -> str:
    """docs/configuration.md."""
    sections = {"": (load.TOP, schema.Settings)} | {
        name: (table, type_of(schema.Settings, name)) for name, table in load.SECTIONS.items()
    }
    sections["tls.certificates"] = (load.CERTIFICATES, schema.CertificateSettings)
    return _CONFIGURATION + "".join(section(name, *each) for name, each in sections.items())


def type_of(cls: type[Any], name: str) -> type[Any]:
    found: type[Any] = inspect.get_annotations(cls, eval_str=True)[name]
    return found


def section(name: str, table: Mapping[str, tuple[str, Any]], cls: type[Any]) -> str:
    rows, told = "", meanings(cls)
    # In the order of the schema, which its explanations follow.
    for key, (field, parse) in sorted(table.items(), key=lambda item: list(told).index(item[1][0])):
        rows += f"| `{key}` | {default(cls, field, parse)} | {told[field]} |\n"
    title = f"## {name}\n\n{inspect.getdoc(cls).splitlines()[0]}" if name else "## At the top"  # type: ignore[union-attr]
    return f"\n{title}\n\n| key | default | meaning |\n|---|---|---|\n{rows}"


def meanings(cls: type[Any]) -> dict[str, str]:
    """What the docstring tells of each attribute."""
    _, _, attributes = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in found}


def default(cls: type[Any], name: str, parse: Parse) -> str:
    """As it would be written in the file, if it can be."""
    (field,) = (field for field in fields(cls) if field.name == name)
    if field.default is MISSING:
        return "(has to be there)"
    if is_dataclass(field.default):
        return "(a section)"
    text = effective.written(name, field.default, parse)
    return "(none)" if text is None else f"`{text}`"


def metrics() -> str:
    """docs/metrics.md."""
    rows = (
        f"| `{name}` | {described.kind.value} | {', '.join(f'`{label}`' for label in described.labels)} "
        f"| {described.text} |\n"
        for name, described in METRICS.items()
    )
    return _METRICS + "".join(rows)


PAGES = {
    "commands.md": commands,
    "configuration.md": configuration,
    "metrics.md": metrics,
    "api.md": api_reference.api,
    "errors.md": api_reference.error_page,
    "json.md": json_reference.page,
}


def main() -> None:
    for name, make in PAGES.items():
        with open(os.path.join(ROOT, "docs", name), "w", encoding="utf-8") as file:
            file.write(make())


if __name__ == "__main__":
    main()
