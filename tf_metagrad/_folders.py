"""Puts a folder in the place of another, so that a reader finds the one or the other at any moment."""

import ctypes
import os

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD; RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS


def exchange(one: str, other: str) -> bool:
    """Exchange two folders in one step; return False where the system or the file system cannot, as NFS."""
    libc, names = ctypes.CDLL(None), (os.fsencode(one), os.fsencode(other))
    if hasattr(libc, "renameat2"):
        return libc.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0
    return hasattr(libc, "renamex_np") and libc.renamex_np(*names, _EXCHANGE) == 0


def put_in_place(new: str, path: str, old: str) -> None:
    """Move the folder `new` to `path`; what was there goes to `new` or `old`. An error leaves it where it was."""
    if os.path.exists(path) and exchange(new, path):
        return
    if os.path.exists(path):
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if os.path.exists(old):
            os.replace(old, path)
        raise
