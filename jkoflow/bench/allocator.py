"""The C library's memory allocator, set for PyTorch so that freed memory is kept instead of being mapped anew."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's numbers of mallopt's parameters
_TOP_PAD_BYTES = 256 << 20
_NEVER = -1


def keep_freed_memory() -> str:
    """Tells glibc's allocator to keep freed memory, for the rest of the process.

    Eager PyTorch allocates large temporaries in each operation. By glibc's defaults each temporary is mapped anew and
    zeroed page by page. This makes the peers up to three times slower; our code hardly allocates.

    Returns:
        A text for the record that says what was set.
    """
    preloaded = os.environ.get("LD_PRELOAD", "")
    if platform.libc_ver()[0] != "glibc" or preloaded:
        return f"as it was ({f'LD_PRELOAD={preloaded}' if preloaded else 'the C library is not glibc'})"
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _TOP_PAD_BYTES))
    if not all(mallopt(parameter, value) for parameter, value in settings):
        return "as it was (mallopt refused)"
    return "glibc keeps freed memory (mallopt: M_MMAP_MAX 0, M_TRIM_THRESHOLD -1, M_TOP_PAD 2^28)"
