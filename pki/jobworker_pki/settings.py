"""What one PKI is for: its trust domain, the role's OID, and the names its certificates may bear."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from jobworker import identity
from jobworker.errors import InvalidField, PkiProblem
from jobworker.identity import DEFAULT_ROLE_OID
from jobworker_pki import profiles


@dataclass(frozen=True, slots=True)
class Settings:
    """Chosen once, when the PKI is made.

    Attributes:
        trust_domain: of the users' identities, `spiffe://TRUST-DOMAIN/user/NAME`.
        role_oid: of the extension with the role.
        domains: hosts are named in or below these; any host name may stand if there are none.
        networks: hosts' addresses lie in these, e.g. `10.0.0.0/8`; any address may stand if there are none.
            Only what is issued here is held to them.
    """

    trust_domain: str
    role_oid: str = DEFAULT_ROLE_OID
    domains: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what cannot stand in a certificate.

        Raises:
            InvalidField: one of the settings.
        """
        try:
            identity.user_uri(self.trust_domain, "name")
        except ValueError:
            raise InvalidField("trust-domain", f"{self.trust_domain!r:.80} is none", "example.org") from None
        try:
            identity.check_role_oid(self.role_oid)
        except ValueError as error:
            raise InvalidField("role-oid", str(error)) from None
        for domain in self.domains:
            _check_domain(domain)
        for network in self.networks:
            _network(network)

    def permitted(self) -> tuple[x509.GeneralName, ...]:
        """The CA's name constraints.

        The networks are not among them: BoringSSL, and so gRPC, knows no constraints on addresses, and would
        refuse every certificate with an address.
        """
        return (
            x509.UniformResourceIdentifier(self.trust_domain),
            *(x509.DNSName(domain) for domain in self.domains),
        )

    def check_host(self, name: x509.GeneralName) -> None:
        """Refuse a name that is not one of this PKI's hosts.

        Raises:
            InvalidField: it is outside all domains, or outside all networks.
        """
        if isinstance(name, x509.DNSName) and self.domains:
            if not any(f".{name.value.lower()}".endswith(f".{domain.lower()}") for domain in self.domains):
                raise InvalidField("host", f"{name.value} is not in or below {', '.join(self.domains)}")
        elif isinstance(name, x509.IPAddress) and self.networks:
            networks = (_network(network) for network in self.networks)
            if not any(name.value in network for network in networks):
                raise InvalidField("host", f"{name.value} is in none of the networks {', '.join(self.networks)}")

    def encode(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=2).encode() + b"\n"


def decode(path: str, content: bytes) -> Settings:
    """Read what `encode` wrote.

    Raises:
        PkiProblem: it is something else.
    """
    try:
        fields: dict[str, Any] = json.loads(content)
        domains, networks = (tuple(fields.pop(name, ())) for name in ("domains", "networks"))
        settings = Settings(**fields, domains=domains, networks=networks)
        settings.check()
    except (ValueError, TypeError, AttributeError, InvalidField) as error:
        raise PkiProblem(path, f"holds no settings of a PKI: {error}", "restore it from a backup") from None
    return settings


def _check_domain(domain: str) -> None:
    try:
        name = profiles.host_name(domain)
    except InvalidField:
        name = None
    if not isinstance(name, x509.DNSName):
        raise InvalidField("domain", f"{domain!r:.80} is no domain", "example.org")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidField("network", str(error), "10.0.0.0/8") from None
