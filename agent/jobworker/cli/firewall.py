"""`worker-agent firewall`: rules for nftables that bound connections by the address they come from.

A handshake is paid for before anybody knows who asks for it, so what one address may cost is bounded where packets
come in: by the kernel, which keeps an account for each address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

import click

from jobworker.errors import InvalidField
from jobworker.settings.schema import Settings

# The unit, the role and the documents know it by this name.
TABLE = "jobworker"

_HELP = """\
Print rules for nftables that bound new and open connections by the address they come from.

A TLS handshake costs the gateway some milliseconds of CPU, whoever asks for it. With these rules a flood
from one address is the kernel's affair, and others connect as ever. They are a table of their own, `inet
jobworker`, for the ports of the configuration's listen and metrics.listen, and change nothing else; of IPv6
a network of 64 bits is one address. New connections that come too often are dropped, and TCP tries again;
those beyond --connections are refused. `nft list table inet jobworker` shows who is held back, and counts.

jobworker-firewall.service loads the file at each boot, and again whenever nftables.service has cleared all rules.

\b
Examples:
  worker-agent firewall --config /etc/jobworker/agent.yaml > /etc/jobworker/firewall.nft
  worker-agent firewall --config agent.yaml --connections 50 --trust 10.0.0.0/8 | nft -f -
"""
# `limit` refuses before `ct count` looks, so that what is turned away in a flood costs no look at the connections
# there are. A full set lets in: whoever makes up addresses must not lock out who has one.
_RULES = """\
#!/usr/sbin/nft -f
# Made by `worker-agent firewall`. Replaces what it made before, and touches no other table.
table inet {table} {{}}
delete table inet {table}
table inet {table} {{
    # New connections that were dropped for coming too often; the caller's TCP tries again by itself.
    counter too_often {{}}
    # Connections that were refused since the address has too many.
    counter too_many {{}}
    set pace4 {{ type ipv4_addr; size 65535; flags dynamic, timeout; timeout 1m; }}
    set pace6 {{ type ipv6_addr; size 65535; flags dynamic, timeout; timeout 1m; }}
    set open4 {{ type ipv4_addr; size 65535; flags dynamic; }}
    set open6 {{ type ipv6_addr; size 65535; flags dynamic; }}
    chain input {{
        type filter hook input priority filter; policy accept;
        tcp dport {{ {ports} }} ct state new jump arriving
    }}
    chain arriving {{
{trusted}\
        update @pace4 {{ ip saddr limit rate over {pace} }} counter name too_often drop
        update @pace6 {{ ip6 saddr & {one_host} limit rate over {pace} }} counter name too_often drop
        add @open4 {{ ip saddr ct count over {open} }} counter name too_many reject with tcp reset
        add @open6 {{ ip6 saddr & {one_host} ct count over {open} }} counter name too_many reject with tcp reset
    }}
}}
"""
# Of IPv6 a single host has a network of 64 bits, and all addresses in it.
_ONE_HOST = "ffff:ffff:ffff:ffff::"
_MAX_TRUSTED = 1_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one address may have.

    Attributes:
        per_second: new connections.
        burst: so many at once, after a pause.
        connections: that are open at the same time.
        trusted: addresses and networks that are not bound by this.
    """

    per_second: int
    burst: int
    connections: int
    trusted: tuple[str, ...] = ()


def rules(settings: Settings, bounds: Bounds) -> str:
    """A file for `nft -f`, for the ports that these settings listen on.

    Raises:
        InvalidField: a trusted address is none, or a port is not known before the agent runs.
    """
    listening = {"listen": settings.listen, "metrics.listen": settings.metrics.listen}
    ports = sorted({_port(field, address) for field, address in listening.items() if address})
    return _RULES.format(
        table=TABLE,
        ports=", ".join(map(str, ports)),
        pace=f"{bounds.per_second}/second burst {bounds.burst} packets",
        open=bounds.connections,
        one_host=_ONE_HOST,
        trusted="".join(f"        {line}\n" for line in _trusting(_networks(bounds.trusted))),
    )


def _port(field: str, address: str) -> int:
    port = int(address.rpartition(":")[2])
    if not port:
        problem = f"{address} is for any free port, which no rule can name before the agent runs"
        raise InvalidField(field, problem, "0.0.0.0:7443")
    return port


def _networks(texts: Sequence[str]) -> list[IPv4Network | IPv6Network]:
    if len(texts) > _MAX_TRUSTED:
        raise InvalidField("trust", f"{len(texts)} addresses, more than {_MAX_TRUSTED}", "one network, 10.0.0.0/8")
    return [_network(text) for text in texts]


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidField("trust", f"{error}"[:200], "10.0.0.0/8") from None


def _trusting(networks: Iterable[IPv4Network | IPv6Network]) -> list[str]:
    of_4 = [each for each in networks if isinstance(each, IPv4Network)]
    of_6 = [each for each in networks if isinstance(each, IPv6Network)]
    # To nft, one that lies in another is a conflict.
    families = {"ip": ipaddress.collapse_addresses(of_4), "ip6": ipaddress.collapse_addresses(of_6)}
    lists = {family: ", ".join(map(str, each)) for family, each in families.items()}
    return [f"{family} saddr {{ {each} }} return" for family, each in lists.items() if each]


@click.command(help=_HELP, short_help="Print rules for nftables that bound connections by address.")
@click.option(
    "--config",
    required=True,
    type=click.Path(dir_okay=False, exists=True),
    metavar="FILE",
    help="The agent's configuration, in YAML.",
)
@click.option(
    "--per-second",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    metavar="N",
    help="New connections of one address a second.",
)
@click.option(
    "--burst",
    type=click.IntRange(1, 10_000),
    default=40,
    show_default=True,
    metavar="N",
    help="So many at once, after a pause.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 65_535),
    default=200,
    show_default=True,
    metavar="N",
    help="Open connections of one address; of all together the gateway takes 4096.",
)
@click.option(
    "--trust",
    multiple=True,
    metavar="ADDRESS[/BITS]",
    help="Not to be bound, as a proxy that many come through. Repeatable.",
)
def firewall(config: str, per_second: int, burst: int, connections: int, trust: tuple[str, ...]) -> None:
    from jobworker.cli import service  # noqa: PLC0415 - `--help` need not wait for it

    click.echo(rules(service.canonical(config), Bounds(per_second, burst, connections, trust)), nl=False)
