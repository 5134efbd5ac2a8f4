"""Exported programs: they run without this library and compute the same."""

import dataclasses
import json
import subprocess
import sys

import dense_toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import linen as nn
from jax.tree_util import Partial

from rest_jax import Classifier, UserError, attacks, export, ops
from rest_jax.export.onnx import difference as onnx_difference
from rest_jax.models import create_model

pytest.importorskip('flatbuffers')  # what jax.export writes with

# The whole of what a stranger needs; docs/export.md shows these lines.
LOADER = """
import json, sys
sys.modules['rest_jax'] = None  # it cannot be imported
import numpy as np
from jax import export
model = export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))
logits = model.call(np.load(sys.argv[2]))
np.save(sys.argv[2], logits)
"""
SMALL = {'widths': (8, 8, 16, 16), 'heads': (1, 1, 2, 2), 'depths': (1, 1, 1, 1)}


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).uniform(size=(3, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def classifier():
  return Classifier.load('cifar10')


def classifier_of(name, **overrides):
  module = create_model(name, 5, **overrides)
  variables = jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
  return Classifier.create(name, variables, num_classes=5, overrides=overrides, input_size=32)


def difference(found, wanted):
  return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())


def test_a_stablehlo_file_runs_without_this_library(classifier, images, tmp_path):
  path = classifier.export(tmp_path / 'model.stablehlo')
  np.save(tmp_path / 'images.npy', images)
  command = [sys.executable, '-c', LOADER, str(path), str(tmp_path / 'images.npy')]
  subprocess.run(command, check=True, cwd=tmp_path)
  assert difference(np.load(tmp_path / 'images.npy'), classifier(images)) < 1e-5
  told = json.loads((tmp_path / 'model.stablehlo.json').read_text())
  assert told['input'] == {
    'name': 'images',
    'shape': ['batch', 32, 32, 3],
    'dtype': 'float32',
    'range': [0.0, 1.0],
    'colours': 'RGB',
  }
  assert told['outputs'] == [{'shape': ['batch', 10], 'dtype': 'float32'}]
  assert told['class_names'] == list(classifier.class_names) and len(told['class_names']) == 10
  assert told['normalisation']['mean'] == [0.4914, 0.4822, 0.4465]
  assert told['platforms'] == ['cpu', 'cuda', 'tpu']


@pytest.mark.parametrize(('shape', 'size'), [((40, 40, 3), 40), ((32, 48, 3), None)])
def test_how_a_picture_becomes_the_input_is_told_of_its_size(classifier, shape, size, tmp_path):
  """The classifier's own is 32; what is not square it does not make of a picture."""
  classifier.export(tmp_path / 'm.stablehlo', image_shape=shape, platforms=('cpu',))
  told = json.loads((tmp_path / 'm.stablehlo.json').read_text())['preprocessing']
  assert told.get('input_size') == size and bool(told) == (size is not None)


def test_the_form_of_each_platform_is_in_the_file_and_the_weights_once(images, tmp_path):
  weights = np.random.default_rng(1).normal(size=(3, 3, 1, 3)).astype(np.float32)
  large = jnp.linspace(0, 1e-6, 1_000_000)  # a constant of one value takes no place

  def depthwise(x):
    return ops.depthwise_conv(x, jnp.asarray(weights)) + large.sum()

  path = export.export(depthwise, tmp_path / 'both.stablehlo', image_shape=(32, 32, 3))
  assert large.nbytes < path.stat().st_size < 1.1 * large.nbytes
  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
  with ops.use_form('plain'):
    assert difference(exported.call(images), depthwise(images)) < 1e-6


def test_an_exported_program_can_be_attacked(images, key, tmp_path):
  def linear(x):
    return x.mean((1, 2)) @ jnp.eye(3)

  path = export.export(linear, tmp_path / 'm.stablehlo', image_shape=(32, 32, 3), gradients=True)
  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  labels = np.asarray(linear(images)).argmax(1)
  adv = attacks.pgd(exported.call, images, labels, key=key, eps=8 / 255, steps=3)
  assert (np.asarray(linear(adv)).argmax(1) != labels).all()


class TwoOutputs(nn.Module):
  @nn.compact
  def __call__(self, x):
    return {'maps': nn.Conv(4, (3, 3))(x), 'scores': nn.Dense(2)(x.mean((1, 2)))}


def test_any_function_is_exported(images, tmp_path):
  module = TwoOutputs()
  variables = drawn(module, images)
  path = export.export(
    lambda x: module.apply(variables, x), tmp_path / 'two.stablehlo', image_shape=(32, 32, 3)
  )
  told = json.loads((tmp_path / 'two.stablehlo.json').read_text())
  assert [out['shape'] for out in told['outputs']] == [['batch', 32, 32, 4], ['batch', 2]]
  found = jax.export.deserialize(bytearray(path.read_bytes())).call(images)
  assert difference(found['scores'], module.apply(variables, images)['scores']) < 1e-6


def test_detectors_and_segmenters_are_exported(tmp_path):
  picture = dense_toys.squares((8, 16, (255, 0, 0)), (40, 24, (0, 0, 255)))
  images = np.stack([picture, picture[::-1]]).astype(np.float32) / 255
  detector, segmenter = dense_toys.colour_detector(), dense_toys.colour_segmenter()
  path = export.export(detector, tmp_path / 'boxes.stablehlo')
  found = jax.export.deserialize(bytearray(path.read_bytes())).call(images)
  wanted = detector(images)._asdict()
  assert sorted(found) == ['boxes', 'labels', 'scores', 'valid'] and found['valid'].sum() == 4
  for name, value in found.items():
    np.testing.assert_allclose(value, wanted[name], atol=1e-4, err_msg=name)
  told = json.loads((tmp_path / 'boxes.stablehlo.json').read_text())
  assert told['outputs'][0] == {'name': 'boxes', 'shape': ['batch', 8, 4], 'dtype': 'float32'}
  assert told['preprocessing']['padding'] == 'right and below, in the mean colour'
  assert told['class_names'] == ['red', 'blue']
  path = export.export(segmenter, tmp_path / 'pixels.stablehlo', image_shape=(64, 64, 3))
  found = jax.export.deserialize(bytearray(path.read_bytes())).call(images)
  np.testing.assert_allclose(found, segmenter(images), atol=1e-5)


def test_a_model_of_several_canvases_has_to_be_told_one(tmp_path):
  detector = dense_toys.colour_detector()
  config = dataclasses.replace(detector.config, canvases=((64, 64), (32, 96)))
  with pytest.raises(UserError, match=r'image_shape=.*canvases are 64x64, 32x96'):
    export.export(dataclasses.replace(detector, config=config), tmp_path / 'm.stablehlo')


def onnx_is_there():
  for name in ('jax2onnx', 'onnxruntime'):
    pytest.importorskip(name)


# That the eight ResTs, ResNet-50 and EfficientNet-Lite0 pass: benchmarks/export.py.
@pytest.mark.filterwarnings('ignore')  # of the converter and its dependencies
@pytest.mark.parametrize(
  ('name', 'overrides'),
  [('restv2_tiny', SMALL), ('resnet18', {'width': 4, 'depths': (1, 1, 1, 1)})],
)
def test_onnx_computes_the_same(images, tmp_path, name, overrides):
  onnx_is_there()
  import onnx
  import onnxruntime

  classifier = classifier_of(name, **overrides)
  path = classifier.export(tmp_path / 'model.onnx')
  session = onnxruntime.InferenceSession(str(path))
  for count in (1, 3):
    (found,) = session.run(['logits'], {'images': images[:count]})
    assert found.shape == (count, 5)
    assert difference(found, np.asarray(classifier(images[:count]))) < 1e-4
  told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
  assert json.loads(told['class_names']) == ['0', '1', '2', '3', '4']
  assert (tmp_path / 'model.onnx.json').is_file()


def test_what_is_no_number_in_one_program_alone_is_a_difference():
  """In any of the outputs; what is none in both, or the same infinity, is the same."""
  none, most = np.array([np.nan, np.inf, 1.0]), np.array([1.0, np.inf, 1.0])

  class Session:
    def run(self, names, feed):
      return [np.ones(3), none]

    def get_inputs(self):
      return [type('Input', (), {'name': 'images'})]

  def compared(second):
    function = Partial(lambda value, _: (jnp.ones(3), value), second)
    return onnx_difference(function, Session(), (8, 8, 3))

  assert compared(none) == 0 and np.isnan(compared(most))


@pytest.mark.parametrize(
  ('path', 'options', 'message'),
  [
    ('model.pt', {}, 'ends in .stablehlo or .onnx'),
    ('gs://bucket/model.onnx', {}, 'only local files'),
    ('model.stablehlo', {'platforms': ('quantum',)}, 'platforms are some of'),
    ('model.onnx', {'gradients': True}, 'an .onnx file has neither'),
    ('model.stablehlo', {'image_shape': (32, 32)}, 'three whole numbers'),
  ],
)
def test_bad_input_is_one_line(classifier, tmp_path, path, options, message):
  with pytest.raises(UserError, match=message) as error:
    classifier.export(path if '://' in path else tmp_path / path, **options)
  assert '\n' not in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_a_function_needs_its_image_shape(tmp_path):
  with pytest.raises(UserError, match='image_shape'):
    export.export(lambda x: x, tmp_path / 'm.stablehlo')


def test_a_model_that_asks_how_many_images_there_are_is_refused(tmp_path):
  def asks(x):
    return x.mean((1, 2)) if x.shape[0] > 2 else x.sum((1, 2))

  with pytest.raises(UserError, match='takes any number'):
    export.export(asks, tmp_path / 'm.stablehlo', image_shape=(8, 8, 3))
