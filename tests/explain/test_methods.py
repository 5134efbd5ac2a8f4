"""What it takes to add a method: one decorated function, and every command knows it."""

import inspect
import pydoc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from PIL import Image

from rest_jax import explain
from rest_jax.commands import explain as command
from rest_jax.errors import UserError
from rest_jax.explain import metrics
from rest_jax.explain.arguments import SHARED
from rest_jax.explain.grad_cams import gradient_cam
from rest_jax.explain.methods import METHODS
from rest_jax.models.classifier import Classifier
from rest_jax.models.registry import create_model


@gradient_cam(title='Toy-CAM', source='Nobody 2000')
def toy_cam(features: jax.Array, gradients: jax.Array, *, power: float = 1.0) -> jax.Array:
  """Sum over k of |dS/dA_k A_k| to a power.

  Args:
    power: of the product.
  """
  return jnp.sum(jnp.abs(gradients * features) ** power, -1)


TOY = METHODS.pop('toy_cam')  # no other test is to see it


@pytest.fixture
def toy(monkeypatch):
  monkeypatch.setitem(METHODS, 'toy_cam', TOY)


def test_it_is_a_method_like_the_others(toy):
  pair = (lambda x: x[:, ::2, ::2], lambda a: a.mean((1, 2)))
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  found = explain.explain(pair, images, 'toy_cam', 1, power=2.0, query_batch=1)
  # The gradient of logit 1 is 1/16 in channel 1: the map is that channel, squared.
  expected = explain.min_max(explain.upsample(images[:, ::2, ::2, 1] ** 2, (8, 8)))
  np.testing.assert_allclose(found.maps, expected, atol=1e-5)
  np.testing.assert_array_equal(toy_cam(pair, images, 1, power=2.0, query_batch=1), found.maps)
  assert found.queries == 2 and explain.list_methods()[-1] == 'toy_cam'
  assert list(inspect.signature(toy_cam).parameters) == [
    *('model', 'images', 'targets', 'layer', 'grid', 'power', 'output', 'score', 'query_batch')
  ]
  with pytest.raises(UserError, match='toy_cam has no option'):
    explain.explain(pair, images, 'toy_cam', 1, powder=2.0)
  with pytest.raises(TypeError, match=r"toy_cam\(\): .*unexpected.*'powder'"):
    toy_cam(pair, images, powder=2.0)


def test_the_help_names_it(toy, capsys):
  assert command.main(['--help']) == 0
  printed = capsys.readouterr().out
  assert all(name in printed for name in explain.list_methods()) and 'toy_cam' in printed


@pytest.mark.usefixtures('alone')
def test_it_is_evaluated_and_reported(toy, tmp_path):
  rng = np.random.default_rng(0)
  for number in range(2):
    place = tmp_path / 'data' / 'test' / ('even', 'odd')[number]
    place.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place / 'a.png')
  overrides = {'width': 8, 'depths': (1, 1, 1, 1)}
  module = create_model('resnet18', 2, **overrides)
  variables = drawn(module, np.zeros((1, 32, 32, 3), np.float32))
  Classifier.create(
    'resnet18',
    variables,
    num_classes=2,
    overrides=overrides,
    class_names=('even', 'odd'),
    input_size=32,
    resize='squash',
  ).save(tmp_path / 'model')
  words = [f'--{name}={tmp_path / name}' for name in ('data', 'model', 'output')]
  more = ('--method', 'toy_cam', '--batch_size', '2', '--layer', 'stage1')
  assert command.main(['--evaluate', *words, *more]) == 0
  assert 'Toy-CAM' in (tmp_path / 'output' / 'table.md').read_text()
  assert 'toy_cam' in (tmp_path / 'output' / 'table.csv').read_text()


ASKING = ('insertion_deletion', 'drop_increase', 'road')


@pytest.mark.parametrize('name', [*explain.list_methods(), *ASKING])
def test_every_argument_is_documented_once_and_in_order(name):
  function = METHODS[name].fn if name in METHODS else getattr(metrics, name)
  names = list(inspect.signature(function).parameters)
  text = inspect.getdoc(function) or ''
  head, rest = text.split('\n\nArgs:\n')
  arguments, returns = rest.split('\n\nReturns:\n')
  said = [line.split(':')[0].strip() for line in arguments.splitlines() if line[2] != ' ']
  assert said == names and head and 'Raises:\n  UserError: ' in returns
  assert max(map(len, text.splitlines())) <= 98
  assert [n for n in names if n in SHARED][-3:] == ['output', 'score', 'query_batch']
  shown = pydoc.render_doc(function)  # what help() prints
  assert all(f'  {n}: ' in shown for n in names)


def test_two_methods_of_one_name():
  with pytest.raises(ValueError, match="two methods are called 'grad_cam'"):
    gradient_cam(source='')(METHODS['grad_cam'].fn.__wrapped__)
