"""Places: what the user names is expanded and checked, what we name is safe everywhere."""

import os
import pathlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax import paths
from rest_jax.errors import UserError

NAMES = st.text(st.characters(), max_size=300)


def test_homes_are_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  assert paths.local('~/x') == pathlib.Path('/home/somebody/x')
  assert paths.expanded('~/x') == '/home/somebody/x'
  assert paths.expanded('cifar10') == 'cifar10'
  assert paths.local('C:/x') == pathlib.Path('C:/x')  # a drive is no scheme


@pytest.mark.parametrize(
  ('place', 'message'),
  [
    ('', 'is empty'),
    ('  ', 'is empty'),
    ('gs://bucket/x', 'gs://bucket/x: places under gs://'),
    (pathlib.Path('s3://bucket'), 'places under s3://'),
    ('hf://user/model', 'places under hf://'),
    ('file:///x', 'places under file://'),
    ('~nobody-of-that-name/x', 'home'),
    ('a\0b', 'zero bytes'),
  ],
)
def test_what_is_no_place_here_is_refused(place, message):
  with pytest.raises(UserError, match=message) as caught:
    paths.local(place, '--output')
  assert str(caught.value).startswith('--output is ')


def test_folders_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  assert paths.check_folder(tmp_path / 'new' / 'deep') == tmp_path / 'new' / 'deep'
  assert not (tmp_path / 'new').exists()
  for place, message in (('file', 'a file'), ('file/x/y', r'inside .*file, which is a file')):
    with pytest.raises(UserError, match=message):
      paths.check_folder(tmp_path / place)
  (tmp_path / 'dangling').symlink_to('/nowhere')
  with pytest.raises(UserError, match='a file'):
    paths.check_folder(tmp_path / 'dangling')


def test_folders_without_permission(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda *_: False)  # root may write everywhere
  with pytest.raises(UserError, match='cannot be written'):
    paths.check_folder(tmp_path / 'x')


@given(NAMES)
def test_a_safe_name_is_a_component_of_any_path(name):
  made = paths.safe_name(name, 'picture')
  assert 1 <= len(made.encode()) <= 201
  assert made == made.strip('. ') and made.isprintable()
  assert not set(made) & set('<>:"/\\|?*')
  assert paths.safe_name(made, 'picture') == made


@pytest.mark.parametrize(
  ('name', 'made'),
  [
    ('...', 'picture'),
    ('..', 'picture'),
    ('', 'picture'),
    ('.hidden', 'hidden'),
    ('photo 1', 'photo 1'),
    ('a/../b', 'a_.._b'),
    ('CON', '_CON'),
    ('nul.tar', '_nul.tar'),
    ('caf\udce9', 'caf_'),
    ('狗', '狗'),
    ('$5 and $6', '$5 and $6'),
  ],
)
def test_safe_names(name, made):
  assert paths.safe_name(name, 'picture') == made


@given(
  st.lists(
    st.one_of(NAMES, st.sampled_from(['a', 'A', 'a_2', 'é', 'e\u0301', '..', ''])), max_size=8
  )
)
def test_safe_names_never_meet(names):
  made = paths.safe_names(names, 'picture')
  # As file systems compare them that ignore case and know one form of a letter.
  assert len({unicodedata.normalize('NFC', name.casefold()) for name in made}) == len(names)


def test_names_of_results_never_meet(tmp_path):
  files = [tmp_path / n for n in ('a.png', 'a.jpg', 'b.png', 'x/b.png', 'c.png')]
  assert paths.output_names(files) == ['a.png', 'a.jpg', 'b.png', 'b.png_2', 'c']
  files = [
    tmp_path / n for n in ('....png', '.. .png', 'A.png', 'a.png', 'CON.png', 'caf\udce9.png')
  ]
  assert paths.output_names(files) == ['png', 'png_2', 'A.png', 'a.png_2', '_CON', 'caf_']
