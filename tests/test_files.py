"""Results on disk: a kill or an error leaves the old file, and an error is one line with advice."""

import concurrent.futures
import errno
import json
import threading

import numpy as np
import pytest

from rest_jax import files
from rest_jax.errors import UserError


def test_a_file_is_replaced_at_the_end(tmp_path):
  path = tmp_path / 'new' / 'x.json'
  files.write_json(path, {'a': [1.5, float('nan'), float('inf')], 'b': 'ρ'})
  assert json.loads(path.read_text(encoding='utf-8')) == {'a': [1.5, None, None], 'b': 'ρ'}
  assert 'ρ' in path.read_text(encoding='utf-8')
  with pytest.raises(RuntimeError), files.replacing(path) as temporary:
    assert temporary.parent == path.parent and temporary.suffix == '.json'
    temporary.write_text('half')
    raise RuntimeError
  assert json.loads(path.read_text(encoding='utf-8'))['b'] == 'ρ'
  assert [found.name for found in path.parent.iterdir()] == ['x.json']


def test_names_that_are_no_utf8_and_long_ones(tmp_path):
  path = tmp_path / f'{"x" * 250}.json'
  files.write_json(path, {'picture': 'caf\udce9', 'class': '狗'})
  assert json.loads(path.read_text(encoding='utf-8')) == {'picture': 'caf\udce9', 'class': '狗'}
  files.write_text(tmp_path / 'a.md', 'caf\udce9')
  assert (tmp_path / 'a.md').read_text(encoding='utf-8') == 'caf\\udce9'


def test_a_full_disk_is_told_from_a_bad_place(tmp_path):
  full = pytest.raises(files.WriteError, match='No space left')
  with full as caught, files.writing('x'):
    raise OSError(errno.ENOSPC, 'No space left on device')
  assert caught.value.full
  with pytest.raises(files.WriteError) as caught, files.writing('x'):
    raise OSError(errno.ENOTDIR, 'Not a directory')
  assert not caught.value.full
  with pytest.raises(BrokenPipeError), files.writing('x'):  # of whoever read the output
    raise BrokenPipeError


def test_arrays_keep_their_ending(tmp_path):
  files.write_array(tmp_path / 'x.npy', np.arange(3))
  assert np.load(tmp_path / 'x.npy').tolist() == [0, 1, 2]


def test_an_error_names_the_place_and_ends_with_the_advice(tmp_path):
  (tmp_path / 'file').touch()
  path = tmp_path / 'file' / 'x.txt'
  with pytest.raises(UserError, match=r'cannot write to .*file/x\.txt: .*; .* --output$'):
    files.write_text(path, '')
  with pytest.raises(UserError, match=r'^cannot write to the folder: .*; give another folder$'):
    files.write_text(path, '', 'the folder', 'give another folder')


def test_threads_that_write_one_file_do_not_get_in_each_others_way(tmp_path):
  together = threading.Barrier(4, timeout=30)

  def write(number):
    with files.replacing(tmp_path / 'one.txt') as temporary:
      temporary.write_text(str(number))
      together.wait()  # all have written, none has replaced

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(write, range(4)))
  assert (tmp_path / 'one.txt').read_text() in set('0123')
  assert [path.name for path in tmp_path.iterdir()] == ['one.txt']
