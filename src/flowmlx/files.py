"""Folders that only the user can write to."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Where this package keeps what it can make again. Raises RuntimeError without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowmlx"


def private(folder: Path) -> bool:
    """Make `folder` if need be; say whether it is the user's, and nobody else can write to it."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        return own(folder)
    except OSError:  # a full disk, or one that is read only
        return False


def own(path: Path) -> bool:
    """Whether `path` is the user's, and nobody else can write to it. Raises OSError if missing."""
    about = path.stat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o022
