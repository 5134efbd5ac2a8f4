"""The model directory: exact, replaced as a whole, and every damage named."""

import codecs
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.models import model_dir
from rest_jax.models.classifier import Classifier
from rest_jax.models.model_config import RESIZE_POLICIES, ModelConfig, freeze_overrides
from rest_jax.models.registry import create_model

OPTIONS = dict(width=4)
FILES = {'config.json', 'model.safetensors', 'labels.txt', 'README.md'}


def make(seed=0, **config):
  """A small ResNet of random weights."""
  rng = np.random.default_rng(seed)
  specs = model_dir.abstract_tensors(create_model('resnet18_cifar', 3, **OPTIONS))
  tensors = {n: np.asarray(rng.normal(size=s.shape) * 9).astype(s.dtype) for n, s in specs.items()}
  return Classifier.create(
    'resnet18_cifar',
    jax.tree.map(jnp.asarray, model_dir.unflatten(tensors)),
    num_classes=3,
    overrides=OPTIONS,
    class_names=('cat', 'dog', 'Gürteltier'),
    **config,
  )


@pytest.fixture(scope='module')
def classifier():
  return make(input_size=48, resize='squash', mean=(0.1, 0.2, 0.3), interpolation='bilinear')


@pytest.fixture
def directory(classifier, tmp_path):
  classifier.save(tmp_path / 'model', card='# A card\n')
  return tmp_path / 'model'


def assert_same(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for one, two in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert one.dtype == two.dtype and one.tobytes() == two.tobytes()


def test_comes_back_bit_for_bit(classifier, directory):
  loaded = Classifier.load(directory)
  assert_same(classifier, loaded)
  assert loaded.class_names[2] == 'Gürteltier'
  assert {p.name for p in directory.iterdir()} == FILES
  assert (directory / 'README.md').read_text() == '# A card\n'
  assert [p.name for p in directory.parent.iterdir()] == ['model']
  # As readable as any directory: one made for temporary files would be its maker's alone.
  (directory.parent / 'plain').mkdir()
  assert directory.stat().st_mode == (directory.parent / 'plain').stat().st_mode
  assert len({path.stat().st_mode for path in directory.iterdir()}) == 1


def test_tensor_names_are_linen_paths(directory):
  names = safetensors.numpy.load_file(directory / 'model.safetensors')
  assert {'params/stage2/block0/shortcut_conv/kernel', 'batch_stats/stem/norm/count'} <= set(names)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_a_type_halves_the_file_and_rounds_once(classifier, directory, tmp_path, dtype):
  classifier.save(tmp_path / 'half', dtype=dtype)
  sizes = [(d / 'model.safetensors').stat().st_size for d in (directory, tmp_path / 'half')]
  assert sizes[1] < 0.6 * sizes[0]
  rounded = jax.tree.map(lambda x: x.astype(dtype).astype(x.dtype) if x.ndim else x, classifier)
  loaded = Classifier.load(tmp_path / 'half')
  assert_same(rounded, loaded)
  loaded.save(tmp_path / 'again', dtype=dtype)
  assert_same(loaded, Classifier.load(tmp_path / 'again'))


def test_types_that_no_directory_stores_and_numbers_beyond_one(classifier, tmp_path):
  with pytest.raises(UserError, match='float32, bfloat16, float16, not float64'):
    classifier.save(tmp_path / 'no', dtype='float64')
  large = jax.tree.map(lambda x: x * 0 + 70_000, classifier)
  with pytest.raises(UserError, match=r'as float16: .* hold NaN or infinity'):
    large.save(tmp_path / 'no', dtype='float16')


def test_replaces_a_model_and_keeps_other_files(directory):
  (directory / 'curves.png').write_bytes(b'png')
  other = make(seed=1)
  with pytest.raises(UserError, match='holds a model already'):
    other.save(directory, overwrite=False)
  other.save(directory)
  assert_same(other, Classifier.load(directory))
  assert (directory / 'curves.png').read_bytes() == b'png'
  assert [p.name for p in directory.parent.iterdir()] == ['model']


def test_never_replaces_what_is_no_model(classifier, tmp_path):
  (tmp_path / 'photos').mkdir()
  (tmp_path / 'photos' / 'a.jpg').touch()
  with pytest.raises(UserError, match='exists and is not a model directory'):
    classifier.save(tmp_path / 'photos')
  (tmp_path / 'file').touch()
  for place in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    with pytest.raises(UserError, match=r'file'):
      classifier.save(place)
  (tmp_path / 'empty').mkdir()
  classifier.save(tmp_path / 'empty')


@pytest.mark.parametrize('broken', ['write', 'rename'])
def test_a_full_disk_leaves_the_old_model(broken, classifier, directory, monkeypatch):
  def fail(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    if broken == 'write':
      patch.setattr(model_dir.Path, 'write_bytes', fail)
    else:
      rename = model_dir.Path.rename
      patch.setattr(
        model_dir.Path,
        'rename',
        lambda self, to: fail() if 'partial' in self.name else rename(self, to),
      )
    with pytest.raises(UserError, match=r'cannot write the model directory .*No space left'):
      make(seed=1).save(directory)
  assert_same(classifier, Classifier.load(directory))
  assert [p.name for p in directory.parent.iterdir()] == ['model']


def test_a_kill_at_any_moment_is_settled_by_the_next_write(classifier, directory):
  """Killed while writing, between the two renames, and while clearing up."""
  beside = directory.parent
  (directory / 'curves.png').write_bytes(b'png')
  (beside / '.model.partial').mkdir()
  (beside / '.model.partial' / 'config.json').write_text('half')
  directory.rename(beside / '.model.old')
  with pytest.raises(UserError, match='holds a model already'):
    make(seed=1).save(directory, overwrite=False)
  assert_same(classifier, Classifier.load(directory))
  (directory / 'curves.png').rename(beside / 'curves.png')
  (beside / '.model.old').mkdir()
  (beside / 'curves.png').rename(beside / '.model.old' / 'curves.png')
  make(seed=1).save(directory)
  assert_same(make(seed=1), Classifier.load(directory))
  assert (directory / 'curves.png').read_bytes() == b'png'
  assert [p.name for p in beside.iterdir()] == ['model']


def edit(directory, **changes):
  """Writes config.json with other values; None removes one."""
  path = directory / 'config.json'
  fields = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(model='rest_smal'), 'unknown model'),
    (dict(model=None), 'model'),
    (dict(model=3), 'model'),
    (dict(extra=1), 'extra'),
    (dict(overrides={'widht': 3}), 'widht'),
    (dict(overrides=[1]), 'overrides'),
    (dict(overrides={'depths': [1, 2]}), 'depths'),
    (dict(num_classes='3'), 'whole numbers'),
    (dict(mean=0.5), 'mean'),
    (dict(overrides={'depths': ['a', 1, 1, 1]}), 'describes no model'),
    (dict(overrides={'width': 0.5}), 'describes no model'),
    (dict(overrides={'in_channels': 'x'}), 'describes no model'),
    (dict(std=['a', 'b', 'c']), 'numbers'),
    (dict(mean=[124, 116, 104], std=[58, 57, 57]), 'are divided by 255'),
    (dict(std=[1, float('nan'), 1]), 'numbers'),
    (dict(crop_pct='big'), 'crop_pct is a number'),
    (dict(resize=['squash']), 'resize is one of'),
    (dict(num_classes=4), 'labels'),
  ],
)
def test_a_wrong_config_is_named(changes, message, directory):
  edit(directory, **changes)
  with pytest.raises(UserError, match=message) as error:
    Classifier.load(directory)
  assert str(directory) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('text', [b'{', b'[]', b'', b'\xff\xfe'])
def test_a_config_that_is_no_json_is_named(text, directory):
  (directory / 'config.json').write_bytes(text)
  with pytest.raises(UserError, match=r'config\.json'):
    Classifier.load(directory)


def test_a_line_without_a_class_name_is_told(directory):
  names = (directory / 'labels.txt').read_text().splitlines()
  (directory / 'labels.txt').write_text('\n'.join(['', *names[1:]]) + '\n')
  with pytest.raises(UserError, match=r'labels\.txt: 1 line without a class name'):
    Classifier.load(directory)


@pytest.mark.parametrize('name', ['labels.txt', 'config.json'])
def test_a_mark_that_an_editor_put_in_front_is_no_text(name, directory):
  before, path = Classifier.load(directory), directory / name
  path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
  after = Classifier.load(directory)
  assert (after.class_names, after.config) == (before.class_names, before.config)


def test_a_wrong_tensor_file_is_named(directory):
  path = directory / 'model.safetensors'
  whole = path.read_bytes()
  tensors = safetensors.numpy.load_file(path)
  tensors['params/head/bias'] = np.zeros(4, np.float32)
  tensors['params/more'] = tensors.pop('params/head/kernel')
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(UserError) as error:
    Classifier.load(directory)
  for part in (
    str(path),
    '1 missing, 1 unexpected, 1 misshapen; missing: params/head/kernel;',
    'unexpected: params/more;',
    'params/head/bias is (4,), not (3,)',
  ):
    assert part in str(error.value)
  for content in (whole[:-1], b'junk' * 50, b''):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'model\.safetensors'):
      Classifier.load(directory)


@pytest.mark.parametrize('name', ['labels.txt', 'model.safetensors', 'config.json'])
def test_a_missing_file_is_named(name, directory):
  (directory / name).unlink()
  with pytest.raises(UserError, match=name):
    Classifier.load(directory)


def test_every_place_that_holds_a_model(tmp_path, monkeypatch):
  """A work directory, the file of weights, a home, a checkpoint: one function opens them all."""
  classifier = make(seed=3)
  classifier.save(tmp_path / 'run' / 'model')
  (tmp_path / 'run' / 'config.json').write_text('{"seed": 0}')  # of the training
  (tmp_path / 'run' / 'checkpoints').mkdir()
  monkeypatch.setenv('HOME', str(tmp_path))
  for place in (tmp_path / 'run', '~/run', tmp_path / 'run' / 'model' / 'model.safetensors'):
    assert_same(classifier, Classifier.load(place))
  seen = []
  monkeypatch.setattr(Classifier, 'from_pytorch', lambda *a, **k: seen.append((a, k)))
  (tmp_path / 'x.safetensors').touch()
  Classifier.load('~/x.safetensors', 'rest_small', ema=True)
  ((place,), options), *_ = seen
  assert (
    place == tmp_path / 'x.safetensors'
    and {'model': 'rest_small', 'ema': True}.items() <= options.items()
  )
  shutil.rmtree(tmp_path / 'run' / 'model')
  with pytest.raises(UserError, match='has left no model yet'):
    Classifier.load(tmp_path / 'run')
  with pytest.raises(UserError, match='there is no checkpoint'):
    Classifier.load(tmp_path / 'none.pth')
  with pytest.raises(UserError, match='are for checkpoints'):
    Classifier.load('digit_scenes', 'rest_small')


def test_unknown_names_list_the_zoo(tmp_path, monkeypatch):
  with pytest.raises(UserError, match='the zoo has'):
    Classifier.load('no_such_model')
  (tmp_path / 'x.txt').touch()
  with pytest.raises(UserError, match='is a file of another kind'):
    Classifier.load(tmp_path / 'x.txt')
  monkeypatch.setattr(model_dir.resources, 'files', lambda package: tmp_path)
  make().save(tmp_path / 'zoo' / 'little')
  assert model_dir.zoo_names() == ['little']
  assert Classifier.load('little').config.model == 'resnet18_cifar'
  with pytest.raises(UserError, match='little'):
    Classifier.load('litle')


@given(
  overrides=st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.one_of(
      st.integers(-9, 9), st.booleans(), st.none(), st.text(max_size=5),
      st.floats(allow_nan=False, allow_infinity=False),
      st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=3),
    ),
    max_size=4,
  ),
  statistics=st.lists(
    st.tuples(st.floats(0, 1), st.floats(1e-3, 1)), min_size=1, max_size=4
  ),
  size=st.integers(1, 999),
  crop=st.floats(0.01, 1),
  policy=st.sampled_from(RESIZE_POLICIES),
)  # fmt: skip
def test_config_goes_through_json_unchanged(overrides, statistics, size, crop, policy):
  mean, std = (tuple(v) for v in zip(*statistics, strict=True))
  frozen = freeze_overrides(overrides)
  config = ModelConfig('m', 7, frozen, mean, std, size, policy, crop)
  back = ModelConfig.from_json(config.to_json())
  assert back == config and hash(back) == hash(config)
