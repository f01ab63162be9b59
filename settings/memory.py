"""What glibc's allocator does with freed memory. On other systems nothing is changed."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""`M_TRIM_THRESHOLD`, `M_MMAP_THRESHOLD` and `M_ARENA_MAX` (malloc.h)."""


def keep_freed() -> None:
    """Keep it for the next step of training or the next round, which ask for the same megabytes again.

    Else it goes back to the system, and new pages take a twentieth of a bfloat16 round, and most of the time of
    copying a model for its checkpoint.
    """
    _tell(_MMAP_THRESHOLD, 2**25)
    _tell(_TRIM_THRESHOLD, 2**29)


def share_freed() -> None:
    """Let all threads use what one of them has freed; to be called before there are many.

    Else each thread that has fetched a reply keeps some of it for itself: a server's memory grows by tens of
    megabytes, by chance, and every reply meets new pages.
    """
    _tell(_ARENA_MAX, 1)


def _tell(option: int, size: int) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(option, size)
