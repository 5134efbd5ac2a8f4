import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_apgd

from rest_jax import attacks
from rest_jax.attacks import algorithm, losses
from rest_jax.attacks.auto_pgd import APGD, make_table
from rest_jax.attacks.queries import image_keys
from rest_jax.callables import as_function

SHAPE, CLASSES, COUNT = (4, 4, 2), 5, 6
RADII = {'linf': 0.03, 'l2': 0.15, 'l1': 0.6}


def radius_of(norm, loss):
  """Larger ones meet the poles of the DLR loss, and its plateau: where the label comes third, the
  gradient is 0 but for rounding, which goes another way on each processor.
  """
  return 0.01 if loss == 'dlr' else RADII[norm]


@functools.cache
def smooth_model():
  rng = np.random.default_rng(0)
  a = rng.normal(size=(32, 12)).astype(np.float32) / 3
  b = rng.normal(size=(12, CLASSES)).astype(np.float32)

  def logits_fn(images):
    return jnp.tanh((images.reshape(images.shape[0], -1) - 0.5) @ a) @ b

  return logits_fn


@functools.cache
def case():
  rng = np.random.default_rng(1)
  images = np.clip(rng.uniform(-0.2, 1.2, (COUNT, *SHAPE)), 0, 1).astype(np.float32)
  labels = np.asarray(jnp.argmax(smooth_model()(images), axis=1), np.int32)
  return images, labels


def run(norm, loss, steps, **options):
  images, labels = case()
  eps = jnp.full((COUNT,), radius_of(norm, loss))
  keys = image_keys(jax.random.key(3), COUNT)
  targets = jnp.asarray((labels + 1) % CLASSES)
  return attacks.run(
    APGD(norm=norm, steps=steps, loss=loss, **options),
    as_function(smooth_model()),
    jnp.asarray(images),
    jnp.asarray(labels),
    eps,
    keys,
    targets,
    stop_early=False,
  )


def in_float64(x, label, target, loss):
  """Loss and gradient by NumPy: the chain rule on the two layers, differences of the loss."""
  a, b = (np.asarray(c, np.float64) for c in weights())
  hidden = np.tanh((x - 0.5) @ a)
  z = hidden @ b
  order = np.argsort(z)
  one = np.eye(CLASSES)
  if loss == 'ce':
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    value, slope = -np.log(p[label]), p - one[label]
  elif loss == 'dlr':
    first, second, third = order[-1], order[-2], order[-3]
    other = second if first == label else first
    top, bottom = z[label] - z[other], z[first] - z[third]
    value = -top / (bottom + 1e-12)
    slope = -(one[label] - one[other]) / bottom + top / bottom**2 * (one[first] - one[third])
  else:
    first, third, fourth = order[-1], order[-3], order[-4]
    top, bottom = z[label] - z[target], z[first] - (z[third] + z[fourth]) / 2
    spread = one[first] - (one[third] + one[fourth]) / 2
    value = -top / (bottom + 1e-12)
    slope = -(one[label] - one[target]) / bottom + top / bottom**2 * spread
  return value, a @ ((1 - hidden**2) * (b @ slope))


def weights():
  return [cell.cell_contents for cell in smooth_model().__closure__]


@pytest.mark.parametrize(
  ('norm', 'loss'),
  [('linf', 'ce'), ('linf', 'dlr'), ('l2', 'ce'), ('l2', 'dlr_targeted'), ('l1', 'ce')],
)
def test_it_takes_the_published_steps(norm, loss):
  """Against NumPy in float64, from the same starting points."""
  steps = 40
  images, labels = case()
  state = run(norm, loss, steps)
  start = APGD(norm=norm, steps=steps, loss=loss).init(
    as_function(smooth_model()),
    jnp.asarray(images),
    jnp.asarray(labels),
    jnp.full((COUNT,), radius_of(norm, loss)),
    image_keys(jax.random.key(3), COUNT),
  )
  near = 0
  for i in range(COUNT):
    label, target = labels[i], (labels[i] + 1) % CLASSES

    def answer(x, label=label, target=target):
      return in_float64(x, label, target, loss)

    best, loss_there, trace = reference_apgd.attack(
      answer,
      images[i].astype(np.float64).ravel(),
      np.asarray(start.point[i], np.float64).ravel(),
      norm,
      radius_of(norm, loss),
      steps,
    )
    assert trace.max() == loss_there > trace[0]
    assert loss != 'dlr' or loss_there < 0.9  # 1 is the plateau
    found = np.asarray(state.best_loss[i], np.float64)
    if loss == 'ce':  # the attack's are log odds
      found = np.log1p((CLASSES - 1) * np.exp(found))
    np.testing.assert_allclose(found, loss_there, rtol=1e-3, atol=1e-4)
    near += np.abs(np.ravel(state.best[i]) - best).max() < 1e-3
  # Rounding may send one image another way; its loss is as high.
  assert near >= COUNT - 1


def test_checkpoints_are_the_published_ones():
  table = make_table('linf', 100, False)
  due = np.flatnonzero(table.window)
  # 22 steps, then 3 fewer each time down to 6; step 0 evaluates the start.
  assert due.tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
  assert table.window[due].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
  assert len(table.start) == 101 and table.start.sum() == 1
  sparse = make_table('l1', 100, True)
  assert np.flatnonzero(sparse.start).tolist() == [0, 31, 62]
  assert sparse.radius[[0, 31, 62]].tolist() == [3, 2, 1]
  assert np.flatnonzero(sparse.window).tolist() == list(range(1, 31)) + list(range(32, 62)) + list(
    range(63, 103)
  )
  for steps in range(1, 12):
    for norm in ('linf', 'l1'):
      for large in (False, True):
        assert make_table(norm, steps, large).start[0]


def test_large_radii_end_in_the_ball():
  state = run('l1', 'ce', 20, large_radii=True)
  images, labels = case()
  assert attacks.distances(state.best, images, 'l1').max() <= RADII['l1'] * (1 + 1e-6)
  hit = np.asarray(state.success)
  assert hit.any()
  assert attacks.distances(state.adv, images, 'l1').max() <= RADII['l1'] * (1 + 1e-6)
  predicted = jnp.argmax(smooth_model()(state.adv), axis=1)
  np.testing.assert_array_equal(predicted != labels, hit)


def test_apgd_t_runs_towards_each_other_class():
  images, labels = case()
  options = dict(key=jax.random.key(0), eps=0.03, steps=10)
  adv = attacks.apgd(smooth_model(), images, labels, loss='dlr_targeted', **options)
  wrong = np.asarray(jnp.argmax(smooth_model()(adv), axis=1) != labels)
  single = attacks.apgd(
    smooth_model(), images, labels, loss='dlr_targeted', num_targets=1, **options
  )
  of_one = np.asarray(jnp.argmax(smooth_model()(single), axis=1) != labels)
  assert (wrong >= of_one).all() and wrong.sum() > 0
  assert attacks.distances(adv, images, 'linf').max() <= np.float32(0.03)


def test_a_target_is_reached():
  images, labels = case()
  targets = (labels + 2) % CLASSES
  adv = attacks.apgd(
    smooth_model(), images, labels, key=jax.random.key(0), eps=0.5, steps=30, targets=targets
  )
  np.testing.assert_array_equal(jnp.argmax(smooth_model()(adv), axis=1), targets)


def test_slots_do_not_know_their_neighbours():
  """An image that starts later in another slot ends where it would have alone."""
  images, labels = case()
  apgd, model = APGD(norm='l2', steps=10), as_function(smooth_model())
  eps, keys = jnp.full((COUNT,), 0.5), image_keys(jax.random.key(3), COUNT)
  arrays = (jnp.asarray(images), jnp.asarray(labels), eps, keys)
  whole = attacks.run(apgd, model, *arrays, stop_early=False)
  state = apgd.init(model, *arrays)
  step = jax.jit(lambda state: algorithm.advance(apgd, model, state, False))
  for _ in range(4):
    state = step(state)
  turned = apgd.init(model, *(a[::-1] for a in arrays))
  swap = jnp.arange(COUNT) < 3
  state = algorithm.select(swap, turned, state)
  for _ in range(apgd.length):
    state = step(state)
  np.testing.assert_allclose(state.best[:3], whole.best[::-1][:3], atol=1e-6)
  np.testing.assert_allclose(state.best[3:], whole.best[3:], atol=1e-6)
  assert (state.iteration == apgd.length).all()


def test_dlr_losses_by_hand():
  logits = jnp.array([[5.0, 3.0, 1.0, 0.0], [3.0, 5.0, 1.0, 0.0]])
  labels, targets = jnp.array([0, 0]), jnp.array([2, 2])
  np.testing.assert_allclose(losses.dlr(logits, labels), [-2 / 4, 2 / 4], rtol=1e-6)
  np.testing.assert_allclose(
    losses.dlr_targeted(logits, labels, targets), [-4 / 4.5, -2 / 4.5], rtol=1e-6
  )
  np.testing.assert_allclose(losses.margin(logits, labels), [-2, 2])
  ties = jnp.array([[2.0, 2.0, 2.0, 2.0]])
  assert np.isfinite(losses.dlr(ties, jnp.array([1]))).all()
  np.testing.assert_array_equal(losses.class_of_rank(logits, jnp.array([1, 3])), [1, 3])
