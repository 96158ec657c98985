"""Encrypting a CA's private key: PKCS #8 with PBES2 (RFC 8018), which openssl reads.

The library does the same with 2,048 rounds of PBKDF2 and no way to ask for more. Whoever steals an offline key
has all the time there is, so this form, and nothing else of it, is written here.
"""

from __future__ import annotations

import base64
import os
import textwrap

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

# OWASP's figure for HMAC-SHA-256; a fifth of a second or so.
ROUNDS = 600_000

_SEQUENCE, _INTEGER, _OCTETS, _NULL, _OID = 0x30, 0x02, 0x04, 0x05, 0x06
_PBES2, _PBKDF2 = bytes.fromhex("2a864886f70d01050d"), bytes.fromhex("2a864886f70d01050c")
_HMAC_SHA256, _AES256_CBC = bytes.fromhex("2a864886f70d0209"), bytes.fromhex("60864801650304012a")
# X.690, 8.1.3: from this length on, the number of its bytes goes before it.
_LONG = 0x80
_KEY_BYTES, _SALT_BYTES = 32, 16


def sealed(pkcs8: bytes, passphrase: bytes) -> bytes:
    """An unencrypted PKCS #8 structure (DER) as an encrypted one (PEM)."""
    salt, vector = os.urandom(_SALT_BYTES), os.urandom(AES.block_size // 8)
    key = PBKDF2HMAC(hashes.SHA256(), _KEY_BYTES, salt, ROUNDS).derive(passphrase)
    derivation = _algorithm(_PBKDF2, _parameters(salt))
    scheme = _algorithm(_AES256_CBC, _der(_OCTETS, vector))
    how = _algorithm(_PBES2, _der(_SEQUENCE, derivation, scheme))
    return _pem(_der(_SEQUENCE, how, _der(_OCTETS, _encrypted(pkcs8, key, vector))))


def _encrypted(content: bytes, key: bytes, vector: bytes) -> bytes:
    padder, encryptor = padding.PKCS7(AES.block_size).padder(), Cipher(AES(key), CBC(vector)).encryptor()
    return encryptor.update(padder.update(content) + padder.finalize()) + encryptor.finalize()


def _parameters(salt: bytes) -> bytes:
    rounds = ROUNDS.to_bytes(ROUNDS.bit_length() // 8 + 1, "big")
    return _der(_SEQUENCE, _der(_OCTETS, salt), _der(_INTEGER, rounds), _algorithm(_HMAC_SHA256, _der(_NULL)))


def _algorithm(oid: bytes, parameters: bytes) -> bytes:
    return _der(_SEQUENCE, _der(_OID, oid), parameters)


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    length = len(content)
    if length < _LONG:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG | len(size))) + size + content


def _pem(der: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join(
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", "")
    ).encode()
