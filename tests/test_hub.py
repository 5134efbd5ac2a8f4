"""Models on the Hub, against a stand-in of its HTTP interface on this machine."""

import jax
import numpy as np
import pytest

from rest_jax import Classifier, Detector, Segmenter, UserError, hub
from rest_jax.models import create_detector, create_segmenter
from rest_jax.models.model_dir import abstract_tensors, unflatten
from rest_jax.paths import model_name

pytest.importorskip('huggingface_hub')
pytestmark = pytest.mark.filterwarnings('ignore')  # of the client and its dependencies


@pytest.fixture
def server(monkeypatch, tmp_path):
  import hub_stand_in
  from huggingface_hub import constants

  server = hub_stand_in.serve()
  monkeypatch.setenv('HF_ENDPOINT', server.endpoint)
  monkeypatch.setenv('HF_TOKEN', 'hf_of_a_test')
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  yield server
  server.shutdown()
  server.server_close()


@pytest.fixture(scope='module')
def classifier():
  return Classifier.load('cifar10')


def test_a_model_goes_up_and_comes_back(server, classifier):
  name = classifier.push_to_hub('somebody/small', license='apache-2.0', tags=('cifar10',))
  assert name == 'hf://somebody/small'
  there = server.repositories['somebody/small']
  assert set(there) == {'config.json', 'model.safetensors', 'labels.txt', 'README.md'}
  assert ('POST', '/api/repos/create', 'Bearer hf_of_a_test') in server.requests
  card = there['README.md'].decode()
  assert card.startswith('---\nlibrary_name: rest_jax\npipeline_tag: image-classification\n')
  assert (
    'license: apache-2.0' in card and '- cifar10' in card and "load('hf://somebody/small')" in card
  )
  for address in (name, f'{name}@main'):
    loaded = Classifier.load(address)
    assert loaded.config == classifier.config and loaded.class_names == classifier.class_names
    same = jax.tree.map(np.array_equal, loaded.variables, classifier.variables)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
  ('kind', 'model', 'task'),
  [
    (Detector, 'retinanet_resnet18', 'object-detection'),
    (Segmenter, 'semantic_fpn_resnet18', 'image-segmentation'),
  ],
)
def test_detectors_and_segmenters_go_up_too(server, kind, model, task):
  make = create_detector if kind is Detector else create_segmenter
  abstract = abstract_tensors(make(model, num_classes=2))
  weights = unflatten({name: np.zeros(x.shape, x.dtype) for name, x in abstract.items()})
  held = kind.create(model, weights, ['cat', 'dog'], short=64)
  name = held.push_to_hub('somebody/dense')
  card = server.repositories['somebody/dense']['README.md'].decode()
  assert f'pipeline_tag: {task}\n' in card and f"{kind.__name__}.load('{name}')" in card
  assert '2 classes (cat, dog).' in card
  loaded = kind.load(name)
  assert loaded.config == held.config and loaded.class_names == ('cat', 'dog')


def test_what_is_not_there_is_one_line(server):
  with pytest.raises(
    UserError, match=r'cannot load hf://nobody/nothing: .*check the name'
  ) as error:
    Classifier.load('hf://nobody/nothing')
  assert '\n' not in str(error.value)
  with pytest.raises(UserError, match='owner/name'):
    Classifier.load('hf://nothing')


def test_metadata_are_kept_where_a_card_has_some(classifier):
  card = '---\nlicense: mit\n---\n# A card\n'
  assert hub.with_metadata(card, classifier) == card


def test_names_of_the_hub_are_no_paths():
  assert model_name('hf://a/b') == 'hf://a/b'
  with pytest.raises(UserError, match='only local files'):
    model_name('s3://a/b')
