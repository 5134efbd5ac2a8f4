"""Health checks: each on a planted case, and silence on a plain model."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_toys import CLASSES, cnn_model, data, mlp, mlp_model
from jax import lax
from jax.tree_util import Partial

from rest_jax import attacks
from rest_jax.attacks import health, registry

EPS = 0.03


@pytest.fixture(scope='module')
def model():
  return mlp_model()


@pytest.fixture(scope='module')
def examples(model):
  return data(model, 12)


WHITE = attacks.named_attack('fgsm', label='white')  # compiles quickly


def checked(model, images, labels, attack=WHITE, eps=EPS, norm='linf', **options):
  """Names of the raised checks, and all checks by name."""
  found = attacks.evaluate(
    model,
    images,
    labels,
    attacks=attack if isinstance(attack, list) else [attack],
    threats=attacks.Threat(norm, eps),
    key=jax.random.key(0),
    **options,
  )
  return {check.name for check in found.raised}, {check.name: check for check in found.health}


def sample_of(images, labels, key=0):
  """All of the images count."""
  keys = jax.random.split(jax.random.key(key), len(labels))
  count = np.ones(len(labels), bool)
  return health.Sample(jnp.asarray(images), jnp.asarray(labels), keys, count, count)


@pytest.mark.parametrize(('norm', 'eps'), [('linf', EPS), ('l2', 0.3), ('l1', 2.0)])
def test_a_plain_model_raises_nothing(norm, eps):
  # The convolutional one once, the others differ in the norm's own code.
  plain = cnn_model() if norm == 'linf' else mlp_model()
  raised, checks = checked(plain, *data(plain, 12), norm=norm, eps=eps)
  assert raised == set()
  assert list(checks) == list(attacks.CHECKS)
  assert all(check.evidence and check.raised_if and check.what_to_do for check in checks.values())


def test_a_softmax_model(model, examples):
  def softmax(weights, images):
    return jax.nn.softmax(mlp(weights, images))

  raised, _ = checked(Partial(softmax, *model.args), *examples)
  assert 'softmax_output' in raised
  assert not raised & {'random_output', 'nan_gradients', 'out_of_bounds', 'batch_dependence'}


def _one(z):
  return 0.2 * (z[:, 1:2] - z[:, :1])


def _probability(z, kind=jnp.float32):
  return jax.nn.sigmoid(_one(z).astype(kind))


# What is made of an mlp's logits of 4 classes, whose size is some 20, and what it looks like.
FORMS = {
  'logits': (lambda z: z, None),
  'log probabilities': (jax.nn.log_softmax, None),
  'logits of bfloat16': (lambda z: z.astype(jnp.bfloat16), None),
  'one logit': (_one, None),
  'a softmax': (jax.nn.softmax, 'softmax'),
  'a soft softmax': (lambda z: jax.nn.softmax(z / 30), 'softmax'),
  'a softmax in bfloat16': (lambda z: jax.nn.softmax((z / 9).astype(jnp.bfloat16)), 'softmax'),
  'a softmax in float16': (lambda z: jax.nn.softmax((z / 9).astype(jnp.float16)), 'softmax'),
  'a saturated softmax': (lambda z: jax.nn.softmax(100 * z.astype(jnp.bfloat16)), 'softmax'),
  'one that is float32 again': (
    lambda z: jax.nn.softmax((z / 9).astype(jnp.bfloat16)).astype(jnp.float32),
    'softmax',
  ),
  'one probability': (_probability, 'probability'),
  'one probability (B,)': (lambda z: _probability(z)[:, 0], 'probability'),
  'one of bfloat16': (lambda z: _probability(z, jnp.bfloat16), 'probability'),
  'one that is saturated': (lambda z: jax.nn.sigmoid(1000 * z[:, :1]), 'probability'),
  'several probabilities': (lambda z: jax.nn.sigmoid(z / 9), 'probability'),
  'several of float16': (lambda z: jax.nn.sigmoid((z / 9).astype(jnp.float16)), 'probability'),
}


@pytest.mark.parametrize('name', FORMS)
def test_outputs_that_look_like_probabilities(name, model, examples):
  form, expected = FORMS[name]

  def formed(weights, images):
    return form(mlp(weights, images))

  sample = sample_of(*examples)
  found = {c.name: c for c in health._check_outputs(Partial(formed, *model.args), sample)}
  raised = {name for name, check in found.items() if check.raised}
  assert raised == ({f'{expected}_output'} if expected else set())


@pytest.mark.parametrize('count', [1, 2, 12])
@pytest.mark.parametrize('low', [0.0, 0.3])
def test_one_logit_between_0_and_1_on_the_images_is_no_probability(count, low):
  """Few images, or images that are all alike, say nothing; other images leave the range."""

  def brightness(images):
    return low + 3 * images.mean(axis=(1, 2, 3)) - 1

  images = 0.45 + 0.1 * np.random.default_rng(0).random((count, 6, 6, 3), np.float32)
  sample = sample_of(images, np.ones(count, np.int32))
  model = Partial(brightness)
  assert ((model(images) > 0) & (model(images) < 1)).all()
  assert not any(check.raised for check in health._check_outputs(model, sample))


def test_a_logit_of_small_range_is_no_probability():
  """It says class 1 of all images, and may well mean it."""
  sample = sample_of(np.random.default_rng(0).random((12, 6, 6, 3), np.float32), np.ones(12, int))
  small = Partial(lambda images: 0.3 + 0.4 * images.mean(axis=(1, 2, 3)))
  assert not any(check.raised for check in health._check_outputs(small, sample))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_numbers_far_from_the_images_are_no_probabilities(value):
  def breaks(images):
    flat = images.reshape(images.shape[0], -1)
    broken = (flat[:, :1] < 0.4) | (flat[:, :1] > 0.6)
    return jnp.where(broken, jnp.array([[value, -value]]), jax.nn.sigmoid(flat[:, 1:3]))

  images = 0.45 + 0.1 * np.random.default_rng(0).random((12, 6, 6, 3), np.float32)
  sample = sample_of(images, np.ones(12, np.int32))
  assert not any(check.raised for check in health._check_outputs(Partial(breaks), sample)[:2])


def test_an_evaluation_says_that_it_was_given_probabilities(model, examples):
  images, _ = examples

  def probability(weights, images):
    return _probability(mlp(weights, images))

  one = Partial(probability, *model.args)
  labels = (np.asarray(one(jnp.asarray(images)))[:, 0] > 0.5).astype(np.int32)
  raised, checks = checked(one, images, labels)
  assert 'probability_output' in raised
  assert 'jax.scipy.special.logit' in checks['probability_output'].what_to_do

  # What it tells to do makes all well.
  def logit(weights, images):
    return jax.scipy.special.logit(probability(weights, images))

  assert checked(Partial(logit, *model.args), images, labels)[0] == set()


def test_gradients_masked_by_rounding(model, examples):
  def rounded(weights, images):
    return mlp(weights, _round(images))

  masked = Partial(rounded, *model.args)
  labels = np.asarray(masked(jnp.asarray(examples[0]))).argmax(axis=1)
  raised, checks = checked(masked, examples[0], labels)
  expected = {'zero_gradients', 'steps_do_not_help', 'radius_does_not_help', 'survives_grey_radius'}
  assert expected <= raised
  assert checks['zero_gradients'].evidence.startswith('100.00%')

  # Through the identity's gradient the same model is as it was.
  def through(weights, images):
    return mlp(weights, attacks.bpda(_round)(images))

  assert checked(Partial(through, *model.args), examples[0], labels)[0] == set()


def _round(images):
  return jnp.round(images * 255) / 255


def chance_from_numpy(rng):
  """A model with noise of NumPy's, drawn at every call."""

  def noisy(weights, images):
    noise = jax.pure_callback(
      lambda x: rng.normal(size=x.shape).astype(np.float32),
      jax.ShapeDtypeStruct((images.shape[0], CLASSES), jnp.float32),
      jax.lax.stop_gradient(images[:, 0, 0, :1]) + jnp.zeros((1, CLASSES)),
    )
    return mlp(weights, images) + 3 * noise

  return noisy


def test_chance_at_every_call(model, examples, monkeypatch):
  # One device: several would take their turns at the generator by chance too.
  monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:1])
  monkeypatch.setattr(jax, 'local_device_count', lambda: 1)
  random = Partial(chance_from_numpy(np.random.default_rng(0)), *model.args)
  raised, checks = checked(random, *examples)
  assert {'random_output', 'unconfirmed_success'} <= raised
  assert 'batch_dependence' not in raised and 'chance' in checks['batch_dependence'].evidence


def test_chance_that_compilation_freezes(model, examples):
  rng = np.random.default_rng(0)

  def frozen(weights, images):
    return mlp(weights, images) + np.float32(rng.normal())

  raised, _ = checked(Partial(frozen, *model.args), *examples)
  assert raised == {'random_output'}


def test_chance_from_keys(model, examples):
  def noisy(images, key):
    return model(images) + jax.random.normal(key, (1, CLASSES))

  random = attacks.eot(noisy, 1, jax.random.key(0), average='logits')
  raised, checks = checked(random, *examples)
  assert 'random_output' in raised and 'with another key' in checks['random_output'].evidence
  assert 'batch_dependence' not in raised


@pytest.mark.parametrize('eps', [0.002, EPS, 0.5])
def test_an_attack_until_all_are_fooled_finds_what_all_its_steps_find(model, examples, eps):
  sample = sample_of(*examples)
  whole = health.short_attack(model, sample, 'linf', eps, 20)
  short = health.short_attack(model, sample, 'linf', eps, 20, until_fooled=True)
  assert short.accuracy == whole.accuracy
  assert (short.flat, short.broken, short.count) == (whole.flat, whole.broken, whole.count)
  if whole.accuracy > 0:
    assert short == whole
  elif eps == 0.5:
    assert short.loss < whole.loss  # it had not gone as far


def test_what_was_fooled_for_a_moment_is_attacked_with_all_steps(model, examples):
  """A model that is now right and now wrong: no step that it was wrong at says anything."""

  def moody(images, key):
    logits = model(images)
    shift = jax.random.bernoulli(key, 0.5).astype(jnp.int32)
    return jnp.roll(lax.stop_gradient(logits), shift, axis=1) + 0 * logits

  random = attacks.eot(moody, 1, jax.random.key(0), average='logits')
  sample = sample_of(*examples)
  whole = health.short_attack(random, sample, 'linf', EPS, 20)
  assert whole.accuracy > 0 and whole.flat == 1
  assert health.short_attack(random, sample, 'linf', EPS, 20, until_fooled=True) == whole


def test_statistics_over_the_batch(model, examples):
  def normalised(weights, images):
    # As of a layer that mixes each image with the next: the order of the batch counts.
    return mlp(weights, images) + 0.5 * jnp.roll(mlp(weights, images), 1, axis=0)

  raised, _ = checked(Partial(normalised, *model.args), *examples)
  assert 'batch_dependence' in raised and 'random_output' not in raised


def test_statistics_that_the_order_does_not_change(model, examples):
  def normalised(weights, images):
    # Batch norm in training mode: the same for a batch in any order.
    return mlp(weights, images - images.mean(axis=0, keepdims=True) + 0.5)

  raised, _ = checked(Partial(normalised, *model.args), *examples)
  assert 'batch_dependence' in raised and 'random_output' not in raised


def test_gradients_that_are_not_numbers(model, examples):
  def root(weights, images):
    return mlp(weights, images) + jnp.sqrt(0.0 * images[:, 0, 0, :1])

  raised, checks = checked(Partial(root, *model.args), *examples)
  assert 'nan_gradients' in raised
  assert checks['nan_gradients'].evidence.startswith('100.00%')


def test_a_black_box_attack_that_wins(model, examples):
  def nothing(logits_fn, images, labels):
    return images

  weak = attacks.Attack('weak', nothing)
  black = dataclasses.replace(WHITE, label='black', black_box=True)
  raised, checks = checked(model, *examples, attack=[weak, black])
  assert raised == {'black_box_wins'} and 'linf 0.03' in checks['black_box_wins'].evidence
  raised, _ = checked(model, *examples, attack=[weak, black, WHITE])
  assert raised == set()


@pytest.mark.parametrize('kind', ['ball', 'range', 'nan'])
def test_an_image_out_of_bounds_is_no_success(model, examples, kind):
  def outside(logits_fn, images, labels, *, eps):
    if kind == 'nan':
      return images * np.float32(np.nan)
    if kind == 'ball':
      return np.clip(np.where(images < 0.5, images + 2 * eps, images - 2 * eps), 0, 1)
    return np.where(images < 0.5, images - eps, images + eps).astype(np.float32)

  attack = attacks.Attack('outside', outside)
  found = attacks.evaluate(
    model,
    *examples,
    attacks=[attack],
    threats=attacks.Threat('linf', EPS),
    key=jax.random.key(0),
  )
  assert {check.name for check in found.raised} == {'out_of_bounds'}
  assert found.rows[0].robust_accuracy.value == 1
  check = next(check for check in found.health if check.name == 'out_of_bounds')
  assert check.evidence.startswith('12 of 12 images')


@pytest.mark.parametrize(('norm', 'eps'), [('linf', 8 / 255), ('l2', 0.5), ('l1', 12.0)])
def test_rounding_is_not_out_of_bounds(norm, eps):
  from rest_jax.attacks.judge import measure

  rng = np.random.default_rng(0)
  images = rng.random((50, 32, 32, 3), np.float32)
  delta = rng.normal(size=images.shape)
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  size = np.linalg.norm(delta.reshape(50, -1), ord=order, axis=1)[:, None, None, None]
  adv = np.clip(images + (eps * delta / size).astype(np.float32), 0, 1)
  distance, inside = measure(adv, images, norm, eps)
  assert inside.all() and (distance > 0).all()
  moved = images + 1.001 * (adv - images).astype(np.float32)
  far, inside = measure(moved, images, norm, distance.min())
  assert (far > distance.min()).all() and not inside.any()
  assert measure(images, images, norm, 0.0)[1].all()
  moved = np.where(images < 0.5, np.nextafter(images, np.float32(1)), images)
  assert not measure(moved, images, norm, 0.0)[1].any()


def test_nothing_correct_is_no_alarm(model, examples):
  images, labels = examples
  raised, checks = checked(model, images, (labels + 1) % CLASSES)
  assert raised == set()
  assert checks['steps_do_not_help'].evidence == 'no image is classified correctly'


def test_radius_zero_is_no_alarm(model, examples):
  assert checked(model, *examples, eps=0.0)[0] == set()


def test_the_page_lists_every_check_and_attack():
  page = (Path(__file__).parents[2] / 'docs' / 'attacks.md').read_text()
  rows = dict(re.findall(r'^\| `(\w+)` \| (.*) \|$', page, flags=re.MULTILINE))
  for name, (raised_if, what_to_do) in attacks.CHECKS.items():
    assert rows[name] == f'{raised_if} | {what_to_do}'
  assert health.table() in page and registry.table() in page
