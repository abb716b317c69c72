"""Who made a .pyz: Ed25519 over its listing, and so over every entry.

openssl genpkey -algorithm ed25519 -out key.pem
openssl pkey -in key.pem -pubout -out public.pem
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.archive import LISTING, SIGNATURE, Archive, read_raw
from deploy.errors import LabError

_NEEDS = (
    "signatures need the library cryptography: pip install cryptography, or sudo apt install "
    "python3-cryptography"
)


def sign(listing: bytes, private_key: Path) -> bytes:
    """64 bytes. private_key: a PEM file without a password. Raises LabError."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise LabError(_NEEDS) from error
    key = _load(private_key, lambda pem: load_pem_private_key(pem, None))
    if not isinstance(key, Ed25519PrivateKey):
        raise LabError(
            f"{private_key}: no private key of Ed25519; make one: openssl genpkey -algorithm ed25519"
        )
    return key.sign(listing)


def require_signature(archive: Archive, public_key: Path) -> None:
    """Raises LabError unless the archive was signed with the private key to this PEM file."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise LabError(_NEEDS) from error
    key = _load(public_key, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise LabError(f"{public_key}: no public key of Ed25519; openssl pkey -in key.pem -pubout makes it")
    try:
        key.verify(read_raw(archive, SIGNATURE), read_raw(archive, LISTING))
    except KeyError as error:
        raise LabError(
            f"{archive.path}: is not signed, and a signature is required; do not use it"
        ) from error
    except InvalidSignature as error:
        raise LabError(
            f"{archive.path}: its signature is not of the key {public_key}; do not use this file"
        ) from error


def _load(path: Path, load: Any) -> Any:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}; check the path of the key") from error
    # What cryptography raises for PEM that is none, is of another kind, or has a password.
    except Exception as error:
        raise LabError(f"{path}: no key in PEM without a password ({error})") from error
