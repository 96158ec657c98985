"""Certificates for tests: one real development PKI per session, and odd ones made to order.

`dev_pki()` is what `worker-pki dev` makes. `make(Recipe(...), issuer)` makes any certificate, also those that
no authority should. Keys are drawn from a small pool: RSA-4096 keys take a second each.
"""

from __future__ import annotations

import atexit
import functools
import ipaddress
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobworker.identity import DEFAULT_ROLE_OID, Role, encode_role
from jobworker_pki import dev, profiles

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

URI = f"spiffe://{dev.DEFAULT_TRUST_DOMAIN}/user/alice"
CLIENT_AUTH, SERVER_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of PEM files, as a client or a server is given them."""

    ca: str
    cert: str
    key: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in memory."""

    certificate: x509.Certificate
    private_key: Key

    @property
    def cert_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def save(self, directory: str | os.PathLike[str], name: str, chain: tuple[Pair, ...] = ()) -> Files:
        """Write NAME.pem (with the chain behind it) and NAME.key; `ca` is the development CA's file."""
        cert, key = (os.path.join(directory, f"{name}.{suffix}") for suffix in ("pem", "key"))
        with open(cert, "wb") as file:
            file.write(b"".join(pair.cert_pem for pair in (self, *chain)))
        with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(self.key_pem)
        return Files(dev_pki().path("ca.pem"), cert, key)


@dataclass(frozen=True, slots=True)
class DevPki:
    """A directory made by `worker-pki dev`. Shared by all tests: copy it before changing it."""

    directory: str

    def path(self, file: str) -> str:
        return os.path.join(self.directory, file)

    def files(self, name: str) -> Files:
        """The files of `server`, `writer` or `reader`."""
        return Files(self.path("ca.pem"), self.path(f"{name}.pem"), self.path(f"{name}.key"))

    def pair(self, name: str) -> Pair:
        with open(self.path(f"{name}.pem"), "rb") as file:
            certificate = x509.load_pem_x509_certificate(file.read())
        with open(self.path(f"{name}.key"), "rb") as file:
            loaded = serialization.load_pem_private_key(file.read(), None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(loaded, rsa.RSAPrivateKey)
        return Pair(certificate, loaded)

    def copy(self, directory: str | os.PathLike[str]) -> DevPki:
        return DevPki(str(shutil.copytree(self.directory, directory)))


@functools.cache
def dev_pki() -> DevPki:
    """The session's development PKI; made at the first call, in four seconds or so."""
    root = tempfile.mkdtemp(prefix="jobworker-test-pki-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    directory = os.path.join(root, "pki")
    dev.ensure(directory, dev.Wanted(), renew=False, progress=lambda _text: None)
    return DevPki(directory)


@functools.cache
def key(kind: str = "rsa4096") -> Key:
    """A key from the pool: `rsa4096`, `other4096`, `foreign4096`, `rsa2048`, `p256`."""
    borrowed = {"rsa4096": "writer", "other4096": "reader", "foreign4096": "server"}
    if kind in borrowed:
        return dev_pki().pair(borrowed[kind]).private_key
    if kind == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=int(kind.removeprefix("rsa")))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a certificate says. The defaults make a good writer called alice.

    Attributes:
        roles: the raw value of each role extension.
        begin, end: validity, from now.
        key: which key of the pool, see `key`.
        sha1: signed with SHA-1, by an RSA issuer.
        ca: basicConstraints say that it is a CA.
        lists: key usage says that it may sign revocation lists, if it is one.
    """

    common_name: str = "alice"
    uris: tuple[str, ...] = (URI,)
    hosts: tuple[str, ...] = ()
    usage: x509.ObjectIdentifier | None = CLIENT_AUTH
    roles: tuple[bytes, ...] = field(default=(encode_role(Role.WRITER),))
    role_oid: str = DEFAULT_ROLE_OID
    role_critical: bool = False
    begin: timedelta = timedelta(minutes=-5)
    end: timedelta = timedelta(hours=1)
    key: str = "rsa4096"
    sha1: bool = False
    ca: bool = False
    lists: bool = True


def make(recipe: Recipe, issuer: Pair | None = None) -> Pair:
    """A certificate by this recipe, signed by the issuer's key; self-signed without one."""
    private_key, subject = key(recipe.key), _name(recipe.common_name)
    signer = issuer.private_key if issuer else private_key
    now = datetime.now(UTC)
    # Not through add_extension, which refuses to add the same one twice.
    builder = x509.CertificateBuilder(
        issuer_name=issuer.certificate.subject if issuer else subject,
        subject_name=subject,
        public_key=private_key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=_naive(now + recipe.begin),
        not_valid_after=_naive(now + recipe.end),
        extensions=_extensions(recipe, private_key, signer),
    )
    certificate = builder.sign(signer, hashes.SHA256())
    return Pair(_with_sha1(certificate, signer) if recipe.sha1 else certificate, private_key)


def _with_sha1(certificate: x509.Certificate, signer: Key) -> x509.Certificate:
    """Sign anew with SHA-1, which no builder does any more: the names of both algorithms are equally long."""
    assert isinstance(signer, rsa.RSAPrivateKey)
    sha256, sha1 = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")
    signed_part = certificate.tbs_certificate_bytes.replace(sha256, sha1)
    signature = signer.sign(signed_part, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 (it is meant to be weak)
    whole = certificate.public_bytes(serialization.Encoding.DER)
    return x509.load_der_x509_certificate(whole.replace(sha256, sha1).replace(certificate.signature, signature))


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None, microsecond=0)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _extensions(recipe: Recipe, own: Key, signer: Key) -> list[x509.Extension[x509.ExtensionType]]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in recipe.uris]
    names += [_host(host) for host in recipe.hosts]
    wanted: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=recipe.ca, path_length=None), True),
        (profiles.key_usage(ca=recipe.ca).value if recipe.lists else _CERT_SIGN, True),
        (x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
    ]
    if names:
        wanted.append((x509.SubjectAlternativeName(names), False))
    if recipe.usage:
        wanted.append((x509.ExtendedKeyUsage([recipe.usage]), False))
    oid = x509.ObjectIdentifier(recipe.role_oid)
    wanted += [(x509.UnrecognizedExtension(oid, role), recipe.role_critical) for role in recipe.roles]
    return [x509.Extension(value.oid, critical, value) for value, critical in wanted]


def _host(host: str) -> x509.GeneralName:
    """Not the profiles' own, which refuses names that a hostile authority would put in."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


_CERT_SIGN = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def crl(
    issuer: Pair,
    *revoked: Pair | int,
    begins: timedelta = timedelta(days=-1),
    ends: timedelta = timedelta(hours=1),
    extra: x509.ExtensionType | None = None,
    critical: bool = True,
    signer: Pair | None = None,
) -> bytes:
    """A revocation list in PEM form; `extra` is an extension."""
    now = datetime.now(UTC).replace(microsecond=0)
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=issuer.certificate.subject,
        last_update=_naive(now + begins),
        next_update=_naive(now + ends),
    )
    for one in revoked:
        number = one if isinstance(one, int) else one.certificate.serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(_naive(now))
        builder = builder.add_revoked_certificate(entry.build())
    if extra:
        builder = builder.add_extension(extra, critical=critical)
    made = builder.sign((signer or issuer).private_key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def foreign_ca(ca: Pair | None = None) -> Pair:
    """Another CA under the very name of one, or of the development CA."""
    name = (ca or dev_pki().pair("ca")).certificate.subject
    common_name = str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    return make(Recipe(common_name, uris=(), usage=None, roles=(), key="foreign4096", ca=True))


def odd_clients(ca: Pair | None = None, uri: str = URI) -> dict[str, Pair]:
    """Client certificates that must not be let in, by what is wrong with them.

    Args:
        ca: that agents trust, in place of the development PKI's.
        uri: of a principal whom it may vouch for.
    """
    ca, hour, writer = ca or dev_pki().pair("ca"), timedelta(hours=1), encode_role(Role.WRITER)
    named = functools.partial(Recipe, uris=(uri,))
    leaf = make(named(key="other4096"), ca)
    return {
        "expired": make(named(begin=-2 * hour, end=-hour), ca),
        "not_yet_valid": make(named(begin=hour, end=2 * hour), ca),
        "foreign_ca": make(named(), foreign_ca(ca)),
        "self_signed": make(named()),
        "signed_by_leaf": make(named(), leaf),
        "wrong_usage": make(named(usage=SERVER_AUTH), ca),
        "no_usage": make(named(usage=None), ca),
        "rsa2048": make(named(key="rsa2048"), ca),
        "sha1": make(named(sha1=True), ca),
        "p256": make(named(key="p256"), ca),
        "no_role": make(named(roles=()), ca),
        "critical_role": make(named(role_critical=True), ca),
        "two_roles": make(named(roles=(writer, writer)), ca),
        "trailing_der": make(named(roles=(writer + b"\0",)), ca),
        "unknown_role": make(named(roles=(b"\x0c\x05ADMIN",)), ca),
        "empty_role": make(named(roles=(b"",)), ca),
        "no_uri": make(named(uris=()), ca),
        "two_uris": make(named(uris=(uri, uri + "2")), ca),
        "foreign_uri": make(named(uris=("https://example.org/user/alice",)), ca),
    }
