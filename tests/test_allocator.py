"""Freed memory is kept: what a thread asks for again costs no page faults."""

import os
import subprocess
import sys

import pytest

from rest_jax import allocator

# Counts the page faults of a thread that takes 256 MB twice, as XLA's do for a program's values.
COUNT = """
import ctypes, resource, threading
from rest_jax import allocator
print(allocator.keep_pages())

def take():
  library, pointer = ctypes.CDLL(None), ctypes.c_void_p
  library.malloc.restype, library.malloc.argtypes = pointer, [ctypes.c_size_t]
  library.free.argtypes = [pointer]
  for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = library.malloc(2**28)
    ctypes.memset(place, 1, 2**28)
    library.free(place)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=take)
thread.start()
thread.join()
"""


def glibc():
  try:
    return 'glibc' in os.confstr('CS_GNU_LIBC_VERSION')
  except (AttributeError, ValueError, TypeError):
    return False


pytestmark = pytest.mark.skipif(not glibc(), reason='the settings are those of glibc')


def count(**variables):
  env = {k: v for k, v in os.environ.items() if not k.startswith(allocator._OTHERS)}
  command = [sys.executable, '-c', COUNT]
  done = subprocess.run(command, env=env | variables, text=True, capture_output=True, check=True)
  taken, *faults = done.stdout.split()
  return taken == 'True', [int(number) for number in faults]


def test_what_was_freed_is_used_again():
  taken, (first, second) = count()
  assert taken and first > 1000 and second < first / 100


def test_variables_do_the_same_in_a_process_to_be_started(monkeypatch):
  for name in [name for name in os.environ if name.startswith(allocator._OTHERS)]:
    monkeypatch.delenv(name)
  taken, (first, second) = count(**allocator.variables())
  assert not taken  # they are the user's now
  assert first > 1000 and second < first / 100


@pytest.mark.parametrize(
  'variables',
  [{'REST_JAX_ALLOCATOR': 'default'}, {'MALLOC_ARENA_MAX': '4'}, {'GLIBC_TUNABLES': ''}],
)
def test_settings_of_the_user_stay(variables, monkeypatch):
  taken, (first, second) = count(**variables)
  assert not taken and second > first / 2
  monkeypatch.setenv(*next(iter(variables.items())))
  assert allocator.variables() == {}
