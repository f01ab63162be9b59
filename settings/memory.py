"""What glibc's allocator does with memory. On other systems nothing is changed."""

import ctypes
import mmap
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
"""`M_TRIM_THRESHOLD`, `M_MMAP_THRESHOLD`, `M_MMAP_MAX` and `M_ARENA_MAX` (malloc.h)."""
_USUAL_MMAP_MAX = 65_536
_IN_LARGE_PAGES = 2**28


def keep_freed() -> None:
    """Keep it for the next step of training or the next round, which ask for the same megabytes again.

    Else it goes back to the system, and new pages take a twentieth of a bfloat16 round, and most of the time of
    copying a model for its checkpoint. What the process asks for next lies in pages of 2 MB where the system has them
    (`madvise` or `always` in /sys/kernel/mm/transparent_hugepage/enabled): a server adds up large updates in
    three quarters of the time.
    """
    if (libc := _glibc()) is None:
        return
    libc.mallopt(_MMAP_THRESHOLD, 2**25)
    libc.mallopt(_TRIM_THRESHOLD, 2**29)
    libc.mallopt(_MMAP_MAX, 0)  # a block of the heap, not one apart
    block = libc.malloc(_IN_LARGE_PAGES)
    libc.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
    if block:
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(start, _IN_LARGE_PAGES - mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        libc.free(block)


def share_freed() -> None:
    """Let all threads use what one of them has freed; to be called before there are many.

    Else each thread that has fetched a reply keeps some of it for itself: a server's memory grows by tens of
    megabytes, by chance, and every reply meets new pages.
    """
    if libc := _glibc():
        libc.mallopt(_ARENA_MAX, 1)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
