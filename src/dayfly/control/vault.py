"""Secrets at rest: AES-256-GCM under a key in a file of mode 0600, each value bound to its namespace and name.

The name is authenticated with the value, so that rows cannot be swapped in the database. The key is made on first use; losing
it loses the secrets, which is said in docs/operations.md. Never logs, never holds a plain value longer than a call.
"""

import os
from pathlib import Path

from dayfly.core.model.errors import Refusal

KEY_BYTES, NONCE_BYTES = 32, 12


class Vault:
    """Seals and opens. The key file is read at the first need: most installations hold no secret."""

    def __init__(self, key_file: Path) -> None:
        self._key_file = key_file
        self._key = b""

    def seal(self, namespace: str, name: str, value: bytes) -> bytes:
        """What may be stored: nonce + ciphertext + tag."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher(make=True).encrypt(nonce, value, _bound(namespace, name))  # type: ignore[attr-defined, no-any-return]

    def unseal(self, namespace: str, name: str, sealed: bytes) -> bytes:
        """The inverse of `seal`. Raises Refusal data_unusable when key, name or bytes are not those of the sealing."""
        from cryptography.exceptions import InvalidTag

        try:
            cipher = self._cipher(make=False)
            return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(namespace, name))  # type: ignore[attr-defined, no-any-return]
        except InvalidTag as error:
            raise Refusal(
                "data_unusable", f"Secret {name!r} cannot be opened: {self._key_file} is not the key it was sealed with."
            ) from error

    def derived(self, purpose: str) -> bytes:
        """A key for another purpose, which cannot be told from ours: HMAC-SHA256 of its name."""
        import hmac

        if not self._key:
            self._key = read_key(self._key_file, make=True)
        return hmac.digest(self._key, purpose.encode(), "sha256")

    def _cipher(self, *, make: bool) -> object:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if not self._key:
            self._key = read_key(self._key_file, make=make)
        return AESGCM(self._key)


def read_key(path: Path, *, make: bool) -> bytes:
    """The key in `path`; made when it is missing and `make` says so. Raises Refusal data_unusable."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        if not make:
            raise Refusal("data_unusable", f"{path}, the key of the stored secrets, is missing; restore it.") from None
        return _made_key(path)
    except OSError as error:
        raise Refusal("data_unusable", f"{path} cannot be read: {error.strerror}.") from error
    if len(key) != KEY_BYTES:
        raise Refusal("data_unusable", f"{path} holds {len(key)} bytes, which is no key; restore it.")
    return key


def _made_key(path: Path) -> bytes:
    key = os.urandom(KEY_BYTES)
    write_private(path, key)
    return key


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 whole or not at all, and see it on disk. Raises Refusal storage_full or data_unusable."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_refusal(error, path) from error


def sync_folder(path: Path) -> None:
    """See a rename or a new name in this folder on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_refusal(error: OSError, path: Path) -> Refusal:
    """What to tell a person about a failed write: storage_full for a full disk or quota, data_unusable otherwise."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refusal("storage_full", f"No space is left to write {path}.")
    return Refusal("data_unusable", f"{path} cannot be written: {error.strerror or error}.")


def _bound(namespace: str, name: str) -> bytes:
    return f"{namespace}/{name}".encode()
