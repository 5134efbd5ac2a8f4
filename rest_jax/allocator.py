"""The C library's allocator, told to keep the memory that is freed.

A program that runs on the CPU asks for its temporary memory anew in every call. glibc returns
pieces of that size to the system as soon as they are freed, and its threads have heaps of their own
that hold none of them; so each call gets fresh pages, which the kernel has to clear first, one page
fault after another. For EfficientNet-Lite0 on 32 pictures that is a third of the processor time
(benchmarks/NOTES.md). Pages that are kept cost it once; the most that a process holds is the same.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of glibc's mallopt(3), and the variables that set the same. One heap for all threads:
# those of others are of 64 MB at most, and what does not fit comes from the system.
_SETTINGS = {
  'MALLOC_ARENA_MAX': (-8, 1),
  'MALLOC_MMAP_MAX_': (-4, 0),
  'MALLOC_TRIM_THRESHOLD_': (-1, 2**31 - 1),
  'MALLOC_TOP_PAD_': (-2, 2**26),
}
# Who sets the allocator, or brings another one, is asked nothing more.
_OTHERS = ('MALLOC_', 'GLIBC_TUNABLES', 'LD_PRELOAD', 'REST_JAX_ALLOCATOR')


def variables() -> dict[str, str]:
  """Environment variables that do in a process to be started what `keep_pages` does in this one.

  Returns:
    Their names and values; none where this process was given settings of its own.
  """
  if _chosen():
    return {}
  return {name: str(value) for name, (_, value) in _SETTINGS.items()}


def keep_pages() -> bool:
  """Keeps the memory that this process frees for what it asks for next.

  It has an effect before JAX's CPU backend starts its threads, so before anything is computed.
  Nothing is changed where the C library is not glibc, or where the environment sets its allocator
  (`MALLOC_...`, `GLIBC_TUNABLES`), loads another one (`LD_PRELOAD`) or says
  `REST_JAX_ALLOCATOR=default`.

  Returns:
    Whether all settings were taken.
  """
  if not sys.platform.startswith('linux') or _chosen():
    return False
  library = ctypes.CDLL(None)
  if not hasattr(library, 'gnu_get_libc_version'):
    return False
  taken = [library.mallopt(number, value) for number, value in _SETTINGS.values()]
  return taken == [1] * len(_SETTINGS)


def _chosen() -> bool:
  return any(name.startswith(_OTHERS) for name in os.environ)
