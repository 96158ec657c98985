"""Private keys: their policy, how they are made, and the form they are stored in."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from jobworker.errors import PkiProblem
from jobworker_pki.sealing import sealed

KEY_BITS = 4096
# Above this a handshake takes so long that a peer could keep an agent busy with it.
MAX_BITS = 8192
_EXPONENT = 65537

# Asked for the passphrase of the key at this path, when the key turns out to be encrypted.
Ask = Callable[[str], bytes]


def new(bits: int = KEY_BITS) -> rsa.RSAPrivateKey:
    """A fresh RSA key; one with 4096 bits takes about a second."""
    return rsa.generate_private_key(public_exponent=_EXPONENT, key_size=bits)


def weakness(key: object) -> str | None:
    """What agents have against a public key; None if nothing."""
    if not isinstance(key, rsa.RSAPublicKey):
        return "the key is not RSA"
    if key.key_size < KEY_BITS:
        return f"the key has {key.key_size} bits, fewer than {KEY_BITS}"
    return None


def objection(key: object) -> str | None:
    """What speaks against signing for a public key that came from elsewhere; None if nothing does."""
    if isinstance(key, rsa.RSAPublicKey) and key.key_size > MAX_BITS:
        return f"the key has {key.key_size} bits, more than {MAX_BITS}"
    if isinstance(key, rsa.RSAPublicKey) and key.public_numbers().e < _EXPONENT:
        return f"the key's public exponent is below {_EXPONENT}"
    return weakness(key)


def pem(key: rsa.RSAPrivateKey, passphrase: bytes | None = None) -> bytes:
    """PKCS #8; without a passphrase the file's mode alone protects it."""
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    if passphrase:
        return sealed(key.private_bytes(serialization.Encoding.DER, form, plain), passphrase)
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def load(path: str, content: bytes, ask: Ask | None) -> rsa.RSAPrivateKey:
    """The key in a file's content; `ask` is called only if it is encrypted.

    Raises:
        PkiProblem: it holds no RSA key, or one that cannot be opened.
    """
    kind = "RSA key" if ask else "unencrypted RSA key"
    try:
        key = _open(path, content, ask)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise PkiProblem(path, f"holds no {kind} in PEM form")
    return key


def _open(path: str, content: bytes, ask: Ask | None) -> object:
    try:
        return _parse(content, None)
    except TypeError:  # it is encrypted
        if ask is None:
            raise
    try:
        return _parse(content, ask(path))
    except ValueError:
        raise PkiProblem(path, "is not opened by this passphrase", "give the one it was made with") from None


def _parse(content: bytes, passphrase: bytes | None) -> object:
    # Proving the primes takes half a second, and the key is our own.
    return serialization.load_pem_private_key(content, passphrase, unsafe_skip_rsa_key_validation=True)
