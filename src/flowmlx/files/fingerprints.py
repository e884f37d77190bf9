"""Fingerprints: short texts that tell one set of data from another."""

import hashlib

import numpy as np


def fingerprint(*parts: str | np.ndarray) -> str:
    """32 hexadecimal digits of texts and of the bytes in arrays, in their order (BLAKE2b).

    An array's shape and type are no part of it: give them as text where they may differ.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part.tobytes())
    return digest.hexdigest()
