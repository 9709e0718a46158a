"""How Python and the C library look after the memory of a process."""

import ctypes
import gc

# The names of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest block that glibc comes to keep by itself, and of such blocks more than a batch has.
LARGEST_BLOCK, MOST_KEPT = 32 * 2**20, 256 * 2**20


def tune_memory() -> None:
    """Look for garbage less often, and with glibc keep freed memory in this process for what is computed next."""
    # Imports leave a million objects that stay; to look through them for garbage is a fifth of a short command's time.
    gc.set_threshold(100_000)
    # By default what is freed between two batches may go back to the system and be asked for again, page by page:
    # whether it does depends on what was allocated before, and makes log p(x) take up to 1.6 times as long.
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
