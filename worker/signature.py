"""Signatures of webhooks, as Standard Webhooks has them: HMAC-SHA256 over id, timestamp and body. Pure.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

#: What a secret begins with, where it is written down.
PREFIX: Final = "whsec_"

_LEAST_BYTES: Final = 24
_MOST_BYTES: Final = 64


def secret_key(secret: str) -> bytes:
    """The key in a written secret. Raises `ValueError` that does not repeat it."""
    try:
        key = b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise ValueError(f"not {PREFIX} and {_LEAST_BYTES} to {_MOST_BYTES} bytes in base64")
    return key


def headers(message: str, timestamp: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The three headers of a delivery, with a signature for each key: while a secret is changed there are two."""
    signed = b"%b.%d.%b" % (message.encode(), timestamp, body)
    digests = [hmac.new(key, signed, sha256).digest() for key in keys]
    return {
        "webhook-id": message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{b64encode(digest).decode()}" for digest in digests),
    }
