"""New labels as one small file, made on a workstation and carried to a device that has no torch.

    hpedge-labels 1 ed25519\\n   or   hpedge-labels 1 unsigned\\n
    64 bytes of Ed25519 signature over the line above and all that follows the signature; only in a signed file
    a safetensors file: ``global`` and ``local`` float32 [n, E], metadata ``names`` (a JSON list) and ``fingerprint``

Nothing behind the signature is looked at before it was found right.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from hpdval_edge.atomic import disk_errors, write_file
from hpdval_edge.errors import BadData, MissingDependency, UsageError
from hpdval_edge.labels import NewLabels

SIGNED, UNSIGNED = b"hpedge-labels 1 ed25519\n", b"hpedge-labels 1 unsigned\n"
SIGNATURE_BYTES = 64
MOST_BYTES = 64 << 20


def make_keys(path: Path) -> Path:
    """Write a new private key to ``path``, readable by its owner alone, and its public key beside it; the latter.

    Both or neither.

    Raises:
        UsageError: one of them is there already, or no file is named.
        MissingDependency: no cryptography, or a place not to be written to.
    """
    _, serialization, ed25519 = _cryptography()
    if not path.name:
        raise UsageError("the private key needs a file of its own; name one, e.g. labels.key.")
    public = path.with_name(path.name + ".pub")
    with disk_errors(path):
        for file in (path, public):
            if file.exists():
                raise UsageError(f"{file} is there already; choose another name, a key that signs is not replaced.")
    key = ed25519.Ed25519PrivateKey.generate()
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    text = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    with contextlib.ExitStack() as undo, disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        undo.callback(path.unlink)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        write_file(public, lambda partial: partial.write_bytes(text))
        undo.pop_all()
    return public


def write_labels(path: Path, new: NewLabels, key: Path | None) -> None:
    """Write ``new``, signed with the private ``key``, or unsigned without one.

    Raises:
        UsageError: not a private key. MissingDependency: no cryptography, a full disk.
    """
    banks = {"global": new.text_global, "local": new.text_local}
    content = save_safetensors(
        {name: np.ascontiguousarray(bank, np.float32) for name, bank in banks.items()},
        metadata={"names": json.dumps(list(new.names)), "fingerprint": new.fingerprint},
    )
    signed = SIGNED + content
    data = UNSIGNED + content if key is None else SIGNED + load_key(key, "private").sign(signed) + content
    write_file(path, lambda partial: partial.write_bytes(data))


def read_labels(path: Path, key: Path | None, *, unsigned: bool = False) -> NewLabels:
    """Read what `write_labels` wrote, checked with the public ``key``; with ``unsigned`` no signature is asked for.

    Raises:
        UsageError: no such file, no public key, or neither a key nor ``unsigned``.
        BadData: a signature that is not the key's, a file that is none or was cut off.
        MissingDependency: no cryptography.
    """
    if unsigned == (key is not None):
        raise UsageError(f"pass either --key with the public key that {path} must be signed with, or --unsigned.")
    return unpack_labels(_read(path), path, key)


def unpack_labels(data: bytes, path: str | Path, key: Path | None) -> NewLabels:
    """What `read_labels` makes of the content of the file ``path``; without a ``key`` no signature is asked for.

    Raises:
        UsageError: no public key. BadData, MissingDependency: see `read_labels`.
    """
    signed = data.startswith(SIGNED)
    if not signed and not data.startswith(UNSIGNED):
        raise BadData(f"{path} is no file of labels of this version; `hpedge labels embed` writes them.")
    if not signed and key:
        raise BadData(f"{path} is not signed; make it with --key, or pass --unsigned in place of --key to take it.")
    start = len(SIGNED) + SIGNATURE_BYTES if signed else len(UNSIGNED)
    content = data[start:]
    if key:
        invalid, _, _ = _cryptography()
        try:
            load_key(key, "public").verify(data[len(SIGNED) : start], SIGNED + content)
        except invalid as error:
            raise BadData(
                f"the signature of {path} is not by the key of {key}, or the file was altered; nothing was added."
            ) from error
    return _parse(path, content)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadData(f"{path} has more than {MOST_BYTES >> 20} MiB; that is no file of labels.")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def _parse(path: str | Path, content: bytes) -> NewLabels:
    try:
        banks = load_safetensors(content)
        metadata = _metadata(content)
        names, fingerprint = json.loads(metadata["names"]), metadata["fingerprint"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("names are no list of strings")
        return NewLabels(tuple(names), banks["global"], banks["local"], fingerprint)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadData(f"{path} is damaged ({error!r}); make it again with `hpedge labels embed`.") from error


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file that was read whole: its header is JSON behind 8 bytes of length."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]


def load_key(path: Path, kind: str) -> Any:
    """The Ed25519 key in a PEM file; UsageError where it is not a ``kind`` one, private or public."""
    _, serialization, ed25519 = _cryptography()
    data = _read(path)
    load = {
        "private": (lambda: serialization.load_pem_private_key(data, None), ed25519.Ed25519PrivateKey),
        "public": (lambda: serialization.load_pem_public_key(data), ed25519.Ed25519PublicKey),
    }
    read, type_ = load[kind]
    try:
        key = read()
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, type_):
        other = {"private": "the file without .pub signs", "public": "the file that ends in .pub checks"}[kind]
        raise UsageError(f"--key {path} is no {kind} Ed25519 key; of what `hpedge labels keygen` wrote, {other}.")
    return key


def _cryptography() -> tuple[Any, Any, Any]:
    """The package's InvalidSignature, serialization and ed25519."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingDependency(
            "signatures need the package cryptography: pip install 'hpdval-edge[labels]'; or use --unsigned."
        ) from None
    return InvalidSignature, serialization, ed25519
