"""The work directory: another config, a full disk, a read-only place."""

import errno
import json

import pytest

from rest_jax import files
from rest_jax.errors import UserError
from rest_jax.train import workdir
from rest_jax.train.config import default_config


@pytest.fixture
def used(tmp_path):
  """A work directory with a config and something that looks like a checkpoint."""
  (tmp_path / 'checkpoints' / 'last' / '10').mkdir(parents=True)
  workdir.write_json(tmp_path / 'config.json', default_config().to_dict())
  return tmp_path


def test_created_with_its_parents(tmp_path):
  path = workdir.open_workdir(tmp_path / 'a' / 'b', {})
  assert path.is_absolute() and path.is_dir() and not list(path.iterdir())


def test_a_failed_start_leaves_nothing_that_it_made(tmp_path):
  there = tmp_path / 'there'
  there.mkdir()
  for place in (there / 'b' / 'c', there):
    with pytest.raises(UserError, match='no data'), workdir.unmade_on_failure(place):
      workdir.write_json(workdir.open_workdir(place, {}) / 'config.json', {})
      raise UserError('no data')
    assert [path.name for path in there.iterdir()] == ['config.json'] * (place == there)


def test_same_config_goes_on(used):
  assert workdir.open_workdir(used, default_config().to_dict()) == used


def test_other_config_names_the_keys(used):
  config = default_config()
  config.optim.lr = 0.5
  config.seed = 7
  with pytest.raises(UserError, match=r'differs in optim.lr, seed; give another --output'):
    workdir.open_workdir(used, config.to_dict())


def test_other_config_takes_over_where_nothing_was_saved(used):
  (used / 'checkpoints' / 'last' / '10').rmdir()
  workdir.open_workdir(used, {'seed': 1})


@pytest.mark.parametrize('text', ['{', '[]', None])
def test_config_of_checkpoints_cannot_be_read(used, text):
  (used / 'config.json').unlink()
  if text is not None:
    (used / 'config.json').write_text(text)
  with pytest.raises(UserError, match=r'config.json.*cannot be read'):
    workdir.open_workdir(used, default_config().to_dict())


def test_a_file_is_in_the_way(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write to the work directory .*file'):
    workdir.open_workdir(tmp_path / 'file', {})
  with pytest.raises(UserError, match=r'Not a directory'):
    workdir.open_workdir(tmp_path / 'file' / 'below', {})


@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_failed_writes_become_one_line(tmp_path, number):
  with pytest.raises(UserError, match=r'cannot write to .*--output'), workdir.writing(tmp_path):
    raise OSError(number, 'reason')


def test_messages_of_tensor_stores(tmp_path):
  with pytest.raises(UserError, match=r'No space left'), workdir.writing(tmp_path):
    raise ValueError('RESOURCE_EXHAUSTED: write failed: No space left on device [errno 28]')
  with pytest.raises(ValueError, match=r'^other$'), workdir.writing(tmp_path):
    raise ValueError('other')


def test_full_disk(tmp_path):
  files.temporary_path(tmp_path / 'full.json').symlink_to('/dev/full')
  with pytest.raises(UserError, match=r'No space left on device'):
    workdir.write_json(tmp_path / 'full.json', {})


def test_json_is_replaced_as_a_whole(tmp_path):
  workdir.write_json(tmp_path / 'x.json', {'a': (1, 2)})
  workdir.write_json(tmp_path / 'x.json', {'a': (3,)})
  assert json.loads((tmp_path / 'x.json').read_text()) == {'a': [3]}
  assert [p.name for p in tmp_path.iterdir()] == ['x.json']
