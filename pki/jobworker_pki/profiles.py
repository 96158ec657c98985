"""What certificates say, as frozen data.

A profile is a certificate without its key, issuer, serial and dates: those are the authority's to add. Three
functions make one: for a CA, a server, a user. All names stand in the SAN; the subject is for people to read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobworker import identity
from jobworker.errors import InvalidField

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_COMMON_NAME_MAX = 64


@dataclass(frozen=True, slots=True)
class Extension:
    value: x509.ExtensionType
    critical: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """What one certificate says.

    Attributes:
        common_name: of the subject, at most 64 characters (X.520).
        life: from issuing to expiry.
    """

    common_name: str
    life: timedelta
    extensions: tuple[Extension, ...]

    def subject(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.common_name[:_COMMON_NAME_MAX])])

    def names(self) -> tuple[str, ...]:
        """The SAN, each name with its kind in front."""
        found = (one.value for one in self.extensions if isinstance(one.value, x509.SubjectAlternativeName))
        return tuple(label(name) for san in found for name in san)


def authority(
    name: str, life: timedelta, path_length: int = 0, permitted: tuple[x509.GeneralName, ...] = ()
) -> Profile:
    """A CA that signs revocation lists and certificates.

    Args:
        name: the subject's.
        life: from issuing to expiry.
        path_length: how many CAs may stand between it and a leaf.
        permitted: of each kind of name that occurs here, leaves may bear only names below these.
    """
    limits = (Extension(x509.NameConstraints(permitted, None), critical=True),) if permitted else ()
    return Profile(name, life, (_basic_constraints(path_length), key_usage(ca=True), *limits))


def server(hosts: tuple[str, ...], life: timedelta) -> Profile:
    """A server that is reached under these names and addresses; the first is the subject's.

    Raises:
        InvalidField: one of them is neither a host name nor an IP address.
    """
    names = tuple(host_name(host) for host in dict.fromkeys(hosts))
    # OpenSSL takes a common name with a dot for a host's name if the SAN has none, and a CA's name constraints
    # would then refuse the address.
    common_name = f"host {hosts[0]}" if isinstance(names[0], x509.IPAddress) else hosts[0]
    return Profile(common_name, life, _leaf(ExtendedKeyUsageOID.SERVER_AUTH, names))


def user(name: str, role: identity.Role, trust_domain: str, role_oid: str, life: timedelta) -> Profile:
    """A client, with its identity in the one URI SAN and its role in an extension.

    The extension must not be critical: TLS stacks refuse what they must know and do not.

    Raises:
        InvalidField: name, trust domain or OID cannot stand in a certificate.
    """
    try:
        uri = x509.UniformResourceIdentifier(identity.user_uri(trust_domain, name))
    except ValueError as error:
        raise InvalidField("identity", str(error)) from None
    try:
        oid = x509.ObjectIdentifier(identity.check_role_oid(role_oid))
    except ValueError as error:
        raise InvalidField("role-oid", str(error)) from None
    carried = Extension(x509.UnrecognizedExtension(oid, identity.encode_role(role)), critical=False)
    # OpenSSL takes a common name with a dot for a host's, and a CA's name constraints would then refuse it.
    common_name = f"user {name}" if "." in name else name
    return Profile(common_name, life, (*_leaf(ExtendedKeyUsageOID.CLIENT_AUTH, (uri,)), carried))


def host_name(text: str) -> x509.GeneralName:
    """A host name or an IP address as it stands in a SAN.

    Raises:
        InvalidField: it is neither.
    """
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(text)
        if "%" not in text:  # a scope is of this host alone
            return x509.IPAddress(address)
    # A name's last label is never a number: that would be a mistyped address (RFC 3696).
    if not _HOST_NAME.fullmatch(text) or text.rpartition(".")[2].isdigit():
        raise InvalidField("host", f"{text!r:.80} is neither a host name nor an IP address", "agent.example.org")
    return x509.DNSName(text)


def label(name: x509.GeneralName) -> str:
    """A name of a SAN as people read it, e.g. `DNS:agent.example.org`."""
    kinds = {x509.DNSName: "DNS", x509.IPAddress: "IP", x509.UniformResourceIdentifier: "URI"}
    return f"{kinds.get(type(name), type(name).__name__)}:{name.value}"


def _leaf(purpose: x509.ObjectIdentifier, names: tuple[x509.GeneralName, ...]) -> tuple[Extension, ...]:
    return (
        _basic_constraints(None),
        key_usage(ca=False),
        Extension(x509.ExtendedKeyUsage([purpose]), critical=False),
        Extension(x509.SubjectAlternativeName(names), critical=False),
    )


def _basic_constraints(path_length: int | None) -> Extension:
    """Of a CA; of a leaf without a path length."""
    return Extension(x509.BasicConstraints(path_length is not None, path_length), critical=True)


def key_usage(*, ca: bool) -> Extension:
    """What a key is for: TLS 1.3 signs with a leaf's and does nothing else with it."""
    return Extension(
        x509.KeyUsage(
            digital_signature=not ca,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=ca,
            crl_sign=ca,
            encipher_only=False,
            decipher_only=False,
        ),
        critical=True,
    )
