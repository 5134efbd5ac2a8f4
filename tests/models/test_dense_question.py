"""Questions to detectors and segmenters: values by hand, explained and attacked as a classifier."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_toys import Means, colour_detector, colour_segmenter, squares
from PIL import Image

from rest_jax import attacks, create_detector, create_segmenter, defend, explain
from rest_jax.data.geometry import resize
from rest_jax.errors import UserError
from rest_jax.explain import overlay
from rest_jax.models.classifier import Classifier
from rest_jax.models.dense_config import DenseConfig
from rest_jax.models.dense_model import Detector, Objects
from rest_jax.models.dense_question import Question
from rest_jax.models.mask_rcnn import MaskRCNN

RED, BLUE = (255, 0, 0), (0, 0, 255)
PICTURE = squares((8, 16, RED), (40, 40, BLUE))
THERE = np.ones(1, np.int32)


@pytest.fixture(scope='module')
def detector():
  return colour_detector()


@pytest.fixture(scope='module')
def segmenter():
  return colour_segmenter()


@pytest.fixture(scope='module')
def red(detector):
  """The canvas, and the question whether the red square is there."""
  found = detector.predict(PICTURE)
  return detector.question(PICTURE, found, int(np.flatnonzero(found.labels == 0)[0]))


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x)))


def inside(maps, left, top, side=16):
  """The share of a map's energy inside of a square."""
  maps = np.asarray(maps[0])
  return maps[top : top + side, left : left + side].sum() / maps.sum()


def test_the_answer_is_the_score_of_what_was_found(detector, red):
  images, question = red
  assert images.shape == (1, 64, 64, 3) and images.dtype == np.float32 and images.max() == 1
  np.testing.assert_allclose(question(images), [[10.0]], rtol=1e-5)
  both = np.concatenate([images, np.zeros_like(images)])
  np.testing.assert_allclose(question(both), [[10.0], [-30.0]], rtol=1e-5)
  found = detector.predict(PICTURE)
  for index in range(2):
    images, question = detector.question(PICTURE, found, index)
    np.testing.assert_allclose(sigmoid(question(images))[0, 0], found.scores[index], rtol=1e-5)


def test_a_place_where_nothing_was_found_is_asked_as_training_would(detector):
  box = Objects(np.array([[9.0, 40, 25, 56]], np.float32), np.ones(1), np.array([1]))
  images, question = detector.question(PICTURE, box)
  np.testing.assert_allclose(question(images), [[-30.0]], rtol=1e-5)
  thin = Objects(np.array([[63.0, 0, 64, 1]], np.float32), np.ones(1), np.array([1]))
  assert np.isfinite(detector.question(PICTURE, thin)[1](images)).all()


@pytest.mark.parametrize(
  ('method', 'options', 'least'),
  [
    ('group_cam', {'layer': 'fpn/output3', 'groups': 3}, 0.6),
    ('hires_cam', {'layer': 'fpn/output3'}, 0.6),
    ('gradient', {}, 0.99),
    ('rise', {'masks': 200, 'query_batch': 50}, 0.3),
    ('occlusion', {'patch': 8, 'stride': 8}, 0.6),
  ],
)
def test_maps_of_a_box_lie_in_the_box(red, method, options, least):
  images, question = red
  maps = explain.explain(question, images, method, **options).maps
  assert maps.shape == (1, 64, 64)
  assert inside(maps, 8, 16) > least  # a sixteenth of the picture
  assert inside(maps, 40, 40) < 0.1


def test_a_layer_is_found_by_itself(red):
  images, question = red
  assert explain.tap(question).resolve(images.shape) == 'fpn'
  assert inside(explain.grad_cam(question, images), 8, 16) > 0.3


@pytest.mark.parametrize(
  ('name', 'stages', 'layer'),
  [
    ('mask_rcnn_resnet18', (1, 2, 3), 'backbone/stage3'),
    ('retinanet_rest_lite', (2, 3, 4), 'backbone/stage4'),
    ('semantic_fpn_rest_lite', (), None),
  ],
)
def test_what_lies_behind_the_backbone_is_no_default(name, stages, layer):
  kind = 'detector' if stages else 'segmenter'
  options: Any = {'stages': stages} if stages else {}
  module = (create_detector if stages else create_segmenter)(name, 2, **options)
  config = DenseConfig(kind, name, 2, short=0, long=0, canvases=((64, 64),))
  size = np.array([64, 64])
  assert Question(module, config, {}, 0, np.zeros(4), size, size).default_layer == layer


@pytest.mark.parametrize('attack', ['pgd', 'apgd'])
def test_attacks_make_an_object_vanish_and_leave_the_other(detector, red, attack):
  images, question = red
  key = jax.random.key(0)
  adv = np.asarray(getattr(attacks, attack)(question, images, THERE, key=key, eps=0.3, steps=5))
  assert np.abs(adv - images).max() <= 0.3 + 1e-6
  assert question(adv)[0, 0] < 0 < question(images)[0, 0]
  seen = detector.predict(np.asarray(np.rint(adv[0] * 255), np.uint8), least_score=0.5)
  assert [detector.class_names[label] for label in seen.labels] == ['blue']
  assert np.abs(adv - images)[0, 40:56, 40:56].max() < 0.31


def test_every_tool_takes_a_question(red):
  images, question = red
  found = attacks.evaluate(
    question,
    images,
    THERE,
    attacks=['fgsm'],
    threats=attacks.epsilon_grid('linf', [0.3]),
    key=jax.random.key(0),
  )
  assert 'fgsm' in found.report()
  assert defend.protect(question, 'gaussian')(images).shape == (1, 1)
  maps = explain.gradient(question, images)
  curves = explain.insertion_deletion(question, images, maps, pixels_per_step=512)
  assert np.isfinite(curves.insertion_auc).all()
  assert jax.jit(lambda q, x: q(x))(question, images).shape == (1, 1)


def best_score(found):
  return found.scores[:, 0]


def test_a_score_of_ones_own_is_taken_too(detector, red):
  maps = explain.hires_cam(detector, red[0], layer='fpn/output3', score=best_score)
  assert inside(maps, 8, 16) + inside(maps, 40, 40) > 0.5


def test_a_question_of_another_size_is_the_same_one(detector):
  """A canvas of 64 px holds the picture of 128 at half its size, and another one beside nothing."""
  large = resize({'image': PICTURE}, (128, 128))['image']
  found = detector.predict(large)
  np.testing.assert_allclose(sorted(found.boxes[:, 0]), [16, 80], atol=1)
  images, question = detector.question(large, found)
  np.testing.assert_allclose(sigmoid(question(images))[0, 0], found.scores[0], rtol=1e-4)
  assert question.place((64, 64)) == (0, 0, 128, 128)
  wide = PICTURE[:32]
  images, question = detector.question(wide, detector.predict(wide))
  assert question.place((64, 64)) == (0, 0, 64, 64) and images[0, 32:].max() == 0
  beyond = images.copy()
  beyond[0, 32:] = 1
  assert question(beyond) == question(images)  # what is beyond the picture does not count
  maps = explain.gradient(question, images)
  drawn = overlay(Image.fromarray(wide), np.asarray(maps[0]), question.place((64, 64)))
  assert drawn.size == (64, 32)


def test_a_segmenter_answers_by_the_mean_probability(segmenter):
  picture = squares((8, 16, (60, 0, 40)), (40, 40, BLUE))
  for mask in (np.zeros((64, 64), bool), np.eye(64, dtype=bool)):
    mask[20:30, 4:20] = True
    images, question = segmenter.question(picture, 'blue', mask)
    shares = np.asarray(jax.nn.softmax(10 * images[0], -1))[..., 2]
    np.testing.assert_allclose(sigmoid(question(images))[0, 0], shares[mask].mean(), rtol=1e-4)
  images, question = segmenter.question(picture, 2)
  classes = segmenter.predict(picture)
  np.testing.assert_array_equal(np.asarray(question.where) > 0, classes == 2)
  assert inside(explain.gradient(question, images), 40, 40) == 1
  cam = explain.hires_cam(question, images, layer='pixels')
  assert inside(cam, 40, 40) > 0.9
  adv = attacks.pgd(question, images, THERE, key=jax.random.key(0), eps=0.6, steps=5)
  changed = segmenter.predict(np.asarray(np.rint(np.asarray(adv[0]) * 255), np.uint8))
  assert (changed[40:56, 40:56] != 2).mean() > 0.5


def test_certain_pixels_keep_a_gradient(segmenter):
  certain = segmenter.question(squares((0, 0, BLUE)), 'blue')
  images, question = certain[0], jax.tree.map(lambda leaf: leaf, certain[1])
  steep = jax.tree.map(lambda leaf: 30 * leaf, segmenter.variables)
  question = question.__class__(**{**vars(question), 'variables': steep})
  value, slope = jax.jit(jax.value_and_grad(lambda x: question(x)[0, 0]))(images)
  assert 290 < value < 300 and float(jnp.abs(slope).sum()) > 100


def test_mask_rcnn_answers_by_the_score_of_its_proposals():
  options: Any = dict(width=8, box_width=16, convs=1, stages=(1, 2, 3), masks=False, canonical=32.0)
  options |= dict(proposal_candidates=(32, 16), proposals=(16, 8), score_threshold=0.0)
  module = MaskRCNN(Means(), num_classes=2, **options)
  variables = jax.jit(module.init)(jax.random.key(3), jnp.zeros((1, 64, 64, 3)))
  head = variables['params']['box_head']['class_out']
  variables['params']['box_head']['class_out'] = head | {'kernel': 40 * head['kernel']}
  config = DenseConfig('detector', 'toy', 2, short=0, long=0, canvases=((64, 64),))
  detector = Detector(module, variables, config, ('red', 'blue'))
  found = detector.predict(PICTURE)
  best = int(np.flatnonzero(found.labels == found.labels[0])[0])
  images, question = detector.question(PICTURE, found, best)
  np.testing.assert_allclose(sigmoid(question(images))[0, 0], found.scores[best], rtol=1e-4)
  slope = jax.jit(jax.grad(lambda x: question(x)[0, 0]))(images)
  assert float(jnp.abs(slope).max()) > 0
  nowhere = Objects(np.array([[2.0, 2, 5, 5]], np.float32), np.ones(1), np.array([1]))
  assert np.isfinite(detector.question(PICTURE, nowhere)[1](images)).all()


@pytest.mark.parametrize(
  ('ask', 'words'),
  [
    (lambda d, s: d.question(PICTURE, d.predict(PICTURE), 2), 'no object 2: 2 objects'),
    (lambda d, s: d.question(squares(), d.predict(squares())), 'no object 0: 0 objects'),
    (lambda d, s: s.question(PICTURE, 'blu'), 'did you mean blue'),
    (lambda d, s: s.question(PICTURE, 3), 'no class 3: the model has 3 classes'),
    (lambda d, s: s.question(PICTURE, 'green'), 'no pixel is green here'),
    (lambda d, s: s.question(PICTURE, 'red', np.zeros((64, 64), bool)), 'the mask has no pixel'),
    (lambda d, s: s.question(PICTURE, 'red', np.ones((8, 8), bool)), r'bool \(64, 64\)'),
    (lambda d, s: explain.grad_cam(d, np.zeros((1, 64, 64, 3), np.float32)), 'detector.question'),
    (lambda d, s: explain.grad_cam(s, np.zeros((1, 64, 64, 3), np.float32)), 'segmenter.question'),
    (
      lambda d, s: attacks.pgd(
        d, np.zeros((1, 64, 64, 3), np.float32), THERE, key=jax.random.key(0), eps=0.1
      ),
      'detector.question',
    ),
    (
      lambda d, s: attacks.evaluate(
        s,
        np.zeros((1, 64, 64, 3), np.float32),
        THERE,
        attacks=['fgsm'],
        threats=attacks.epsilon_grid('linf', [0.3]),
        key=jax.random.key(0),
      ),
      'segmenter.question',
    ),
  ],
)
def test_what_cannot_be_asked_is_one_line(detector, segmenter, ask, words):
  with pytest.raises(UserError, match=words) as error:
    ask(detector, segmenter)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('command', ['explain', 'defend'])
def test_commands_for_classifiers_name_what_takes_a_detector(tmp_path, command):
  from rest_jax import __main__ as commands

  config = DenseConfig('detector', 'retinanet_resnet18', 2)
  (tmp_path / 'config.json').write_text(config.to_json())
  Image.fromarray(PICTURE).save(tmp_path / 'a.png')
  words = {'explain': ['--image', str(tmp_path / 'a.png')], 'defend': ['--attack', 'pgd']}[command]
  for call in (
    lambda: commands.main([command, *words, '--model', str(tmp_path)]),
    lambda: Classifier.load(tmp_path),
  ):
    with pytest.raises(UserError, match=r'describes a detector.* rest-jax predict') as error:
      call()
    assert '\n' not in str(error.value)
