"""What certificates have to be: by default, and by settings that say otherwise."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509

from jobworker.errors import PkiProblem, Unauthenticated
from jobworker.gateway import credentials
from jobworker.gateway.certificate_rules import CertificateRules
from jobworker.settings import load, schema
from jobworker.settings.schema import CertificateSettings
from jobworker.settings.yaml_reader import Mistakes
from jobworker_pki import keys, reading
from support import certs
from support.certs import SERVER_AUTH, Recipe, make

OTHER_USAGE = "1.3.6.1.4.1.32473.5"
SERVER = Recipe("localhost", uris=(), hosts=("127.0.0.1",), usage=SERVER_AUTH, roles=())
YAML = "state_dir: /x\nlisten: 127.0.0.1:1\ntls: {{ca: /ca, cert: /c, key: /k, certificates: {}}}\n"


def settings(text: str = "{}") -> CertificateSettings:
    return load.load(YAML.format(text)).tls.certificates


def client(recipe: Recipe) -> x509.Certificate:
    return make(recipe, certs.dev_pki().pair("ca")).certificate


def reason(certificate: x509.Certificate, text: str = "{}", *, agent: bool = False) -> str:
    """Why it is refused; empty if it is not."""
    rules = CertificateRules(settings(text))
    try:
        (rules.check_agent if agent else rules.check_client)(certificate)
    except Unauthenticated as error:
        return error.reason
    return ""


def test_the_defaults_are_those_of_the_tool_that_issues() -> None:
    default = CertificateSettings()
    assert default == settings()
    assert (default.key_types, default.min_rsa_bits) == (("rsa",), keys.KEY_BITS)
    assert set(default.hashes) == {kind.name for kind in reading.HASHES}
    assert (default.client_usages, default.agent_usages) == ((), ())
    assert (default.max_client_life_ms, default.max_agent_life_ms) == (0, 0)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(), ""),
        (Recipe(key="rsa2048"), "the certificate's key is not RSA with 4096 bits or more"),
        (Recipe(key="p256"), "the certificate's key is not RSA with 4096 bits or more"),
        (Recipe(sha1=True), "the certificate's signature is not made with sha256 or sha384 or sha512"),
        (Recipe(usage=None), "the certificate is not meant for clients: it lacks the usage clientAuth"),
        (Recipe(usage=SERVER_AUTH), "the certificate is not meant for clients: it lacks the usage clientAuth"),
        (Recipe(end=timedelta(days=3650)), ""),
    ],
)
def test_by_default(recipe: Recipe, said: str) -> None:
    assert reason(client(recipe)) == said


@pytest.mark.parametrize(
    ("recipe", "text", "said"),
    [
        (Recipe(key="rsa2048"), "{min_rsa_bits: 2048}", ""),
        (Recipe(key="rsa2048"), "{min_rsa_bits: 2049}", "not RSA with 2049 bits or more"),
        (Recipe(), "{min_rsa_bits: 8192}", "not RSA with 8192 bits or more"),
        (Recipe(key="p256"), "{key_types: [rsa, ecdsa]}", ""),
        (Recipe(), "{key_types: [rsa, ecdsa]}", ""),
        (Recipe(), "{key_types: [ecdsa]}", "not ECDSA with 256 bits or more"),
        (
            Recipe(key="p256"),
            "{key_types: [rsa, ecdsa], min_ecdsa_bits: 384}",
            "not RSA with 4096 bits or ECDSA with 384 bits or more",
        ),
        (Recipe(), "{hashes: [sha384, sha512]}", "not made with sha384 or sha512"),
        (Recipe(), f"{{client_usages: [{OTHER_USAGE}]}}", f"lacks the extended key usage {OTHER_USAGE}"),
        (Recipe(), "{client_usages: [clientAuth]}", ""),
        (Recipe(end=timedelta(days=91)), "{max_client_life: 90d}", "made for 91 days, and 90 are the most here"),
        (Recipe(end=timedelta(days=89)), "{max_client_life: 90d}", ""),
        (Recipe(end=timedelta(days=91)), "{max_agent_life: 90d}", ""),
        (Recipe(begin=timedelta(days=-91), end=timedelta(days=1)), "{max_client_life: 90d}", "made for 92 days"),
    ],
)
def test_by_settings(recipe: Recipe, text: str, said: str) -> None:
    found = reason(client(recipe), text)
    assert said in found if said else not found


@pytest.mark.parametrize(
    ("recipe", "text", "said"),
    [
        (SERVER, "{}", ""),
        (replace(SERVER, hosts=()), "{}", "names no host"),
        (replace(SERVER, hosts=(), uris=("spiffe://test/user/agent",)), "{}", "names no host"),
        (replace(SERVER, usage=None), "{}", ""),
        (
            replace(SERVER, usage=None),
            "{agent_usages: [serverAuth]}",
            "lacks the extended key usage 1.3.6.1.5.5.7.3.1",
        ),
        (SERVER, "{agent_usages: [serverAuth]}", ""),
        (replace(SERVER, end=timedelta(days=91)), "{max_agent_life: 90d}", "made for 91 days"),
        (replace(SERVER, key="p256"), "{}", "not RSA with 4096 bits"),
        (replace(SERVER, key="p256"), "{key_types: [ecdsa]}", ""),
        (replace(SERVER, key="rsa2048"), "{min_rsa_bits: 2048}", ""),
    ],
)
def test_the_agents_own_pair(tmp_path: Any, recipe: Recipe, text: str, said: str) -> None:
    files = make(recipe, certs.dev_pki().pair("ca")).save(tmp_path, "own")
    tls = schema.TlsSettings(files.ca, files.cert, files.key, certificates=settings(text))
    if not said:
        assert credentials.load(tls).expires_ns
        return
    with pytest.raises(PkiProblem) as caught:
        credentials.load(tls)
    assert said in str(caught.value)
    assert files.cert in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{key_types: []}", "tls.certificates.key_types: is empty, which would let nobody in; for example [rsa]"),
        ("{key_types: [dsa]}", "tls.certificates.key_types[0]: 'dsa' is not one of rsa, ecdsa"),
        ("{key_types: rsa}", "tls.certificates.key_types: must be a list"),
        ("{min_rsa_bits: 1024}", "tls.certificates.min_rsa_bits: 1024 is not a number between 2048 and 16384"),
        ("{min_ecdsa_bits: 255}", "tls.certificates.min_ecdsa_bits: '255' is not one of 256, 384"),
        ("{hashes: [sha1]}", "tls.certificates.hashes[0]: 'sha1' is not one of sha256, sha384, sha512"),
        ("{client_usages: [web]}", "tls.certificates.client_usages[0]: 'web' is not an object identifier"),
        ("{client_usages: [1.99.1]}", "tls.certificates.client_usages[0]: '1.99.1' is not an object identifier"),
        ("{client_usages: [7]}", "tls.certificates.client_usages[0]: must be text"),
        ("{max_client_life: 90}", "tls.certificates.max_client_life: must be text"),
        ("{max_life: 90d}", "tls.certificates.max_life: is not known here"),
        ("[]", "tls.certificates: must be a mapping"),
    ],
)
def test_settings_that_are_none_are_explained(text: str, said: str) -> None:
    with pytest.raises(Mistakes) as caught:
        settings(text)
    assert said in str(caught.value)
