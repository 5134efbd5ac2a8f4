"""Adversarial steps on a linear model, where the worst perturbation is known, against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax.train import adversarial, classifying, parallel, state, step

EPS, LR, K = 0.06, 0.5, 2
SIZE = (8, 2, 2, 3)  # images: few enough pixels for differences one by one


class Linear(nn.Module):
  """Logits x W of the pixels, no bias."""

  bn_axis_name: str | None = None

  @nn.compact
  def __call__(self, x, train: bool = False):
    return nn.Dense(K, use_bias=False, name='head')(x.reshape(x.shape[0], -1))


@pytest.fixture
def plain(config):
  """Plain gradient descent on pixels as they are, perturbed within EPS."""
  config.data.mean, config.data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
  config.optim.update(name='sgd', momentum=0.0, weight_decay=0.0, clip_norm=0.0, lr=LR)
  config.adversarial.update(eps=EPS, steps=4, step_size=0.05, random_start=False)
  return config


@pytest.fixture
def images():
  """Eight images, some pixels within EPS of black and white, and their labels."""
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, SIZE, dtype=np.uint8),
    'label': np.arange(8, dtype=np.int32) % K,
  }


def train(config, batches, devices=1, model=None, size=2):
  """States after each batch, and the metrics; on one or more devices."""
  import optax

  optimizer, mesh = optax.sgd(LR), parallel.make_mesh(jax.devices()[:devices])
  free = config.train.batch_size if config.adversarial.kind == 'free' else 0
  model = model or Linear()

  def create():
    return state.create_state(model, optimizer, jax.random.key(0), size, free_batch=free)

  template = jax.eval_shape(create)
  current = parallel.replicate(create, mesh, parallel.state_sharding(template, mesh))()
  one = step.make_train_step(model, optimizer, lambda _: LR, config, K)
  mapped = parallel.map_train_step(one, mesh, parallel.state_spec(template))
  states, measured = [jax.device_get(current)], []
  for batch in batches:
    current, metrics = mapped(current, parallel.to_global(batch, mesh))
    states.append(jax.device_get(current))
    measured.append(jax.device_get(metrics))
  return states, measured


def numbers(batch):
  x = batch['image'].reshape(8, -1).astype(np.float64) / 255
  return x, np.eye(K)[batch['label']]


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def worst(x, y, w):
  """The corner of the box that raises the cross entropy of a linear model of two classes most."""
  up = w @ (1 - 2 * y).T  # towards the other class
  return np.clip(x + EPS * np.sign(up.T), 0, 1)


def ce(x, y, w):
  return -(y * np.log(softmax(x @ w))).sum(-1)


def kl(x, other, w):
  p, q = softmax(x @ w), softmax(other @ w)
  return (p * np.log(p / q)).sum(-1)


def slope(loss, w):
  """Central differences of a scalar loss of the weights."""
  grad = np.zeros_like(w)
  for i in np.ndindex(*w.shape):
    h = np.zeros_like(w)
    h[i] = 1e-6
    grad[i] = (loss(w + h) - loss(w - h)) / 2e-6
  return grad


def weights(of):
  return np.asarray(of.params['head']['kernel'], np.float64)


@pytest.mark.parametrize('kind', ['pgd', 'fast', 'mart'])
def test_one_step_by_hand(plain, images, kind):
  plain.adversarial.kind = kind
  plain.adversarial.step_size = 0.2 if kind == 'fast' else 0.05  # one step reaches every corner
  (start, end), (metrics,) = train(plain, [images])
  (x, y), w = numbers(images), weights(start)
  adv = worst(x, y, w)

  def loss(w):
    if kind != 'mart':
      return ce(adv, y, w).mean()
    # Two classes: the rival is the other one, and 1 - p_rival is p_y.
    wrong = 1 - (softmax(x @ w) * y).sum(-1)
    return (2 * ce(adv, y, w) + 5 * kl(x, adv, w) * wrong).mean()

  assert metrics['loss'] == pytest.approx(loss(w), rel=1e-5)
  assert metrics['adversarial_loss'] == pytest.approx(ce(adv, y, w).mean(), rel=1e-5)
  hits = ((adv @ w).argmax(-1) == images['label']).mean()
  assert metrics['adversarial_top1'] == pytest.approx(hits)
  assert ('top1' in metrics) == (kind == 'mart')
  np.testing.assert_allclose(weights(end), w - LR * slope(loss, w), atol=2e-6)


def test_trades_by_hand(plain, images):
  """The KL divergence is largest at one of two opposite corners; the start decides which."""
  plain.adversarial.update(kind='trades', beta=3.0)
  (start, end), (metrics,) = train(plain, [images])
  (x, y), w = numbers(images), weights(start)
  sign = np.sign(w[:, 1] - w[:, 0])
  corners = [np.clip(x + side * EPS * sign, 0, 1) for side in (1, -1)]
  # Each image's corner is told by the change of its weights' gradient: try all 2^8.
  results = []
  for code in range(2**8):
    chosen = [corners[code >> i & 1][i] for i in range(8)]
    results.append((ce(x, y, w) + 3 * kl(x, np.array(chosen), w)).mean())
  best = int(np.argmin(np.abs(np.array(results) - metrics['loss'])))
  assert results[best] == pytest.approx(float(metrics['loss']), rel=1e-6)
  adv = np.array([corners[best >> i & 1][i] for i in range(8)])
  assert metrics['top1'] == pytest.approx(((x @ w).argmax(-1) == images['label']).mean())

  def loss(w):
    return (ce(x, y, w) + 3 * kl(x, adv, w)).mean()

  np.testing.assert_allclose(weights(end), w - LR * slope(loss, w), atol=2e-6)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_free_by_hand(plain, images, accumulate):
  """Three replays of two batches on two devices; the perturbation goes on from batch to batch."""
  plain.adversarial.update(kind='free', replays=3, step_size=0.04)
  plain.train.accumulate = accumulate
  second = {name: rows[::-1].copy() for name, rows in images.items()}
  states, metrics = train(plain, [images, second], devices=2)
  w, delta = weights(states[0]), np.zeros((8, 12))
  for end, batch, measured in zip(states[1:], (images, second), metrics, strict=True):
    x, y = numbers(batch)
    seen = []
    for _ in range(3):
      adv = np.clip(x + delta, 0, 1)
      error = softmax(adv @ w) - y
      seen.append(ce(adv, y, w).mean())
      up = np.sign(error @ w.T)
      w = w - LR * adv.T @ error / 8
      delta = np.clip(delta + 0.04 * up, -EPS, EPS)
    assert measured['loss'] == pytest.approx(np.mean(seen), rel=1e-5)
    np.testing.assert_allclose(weights(end), w, atol=1e-5)
    np.testing.assert_allclose(end.perturbation.reshape(8, 12), delta, atol=1e-6)
  assert states[-1].step == 2


@pytest.mark.parametrize(
  ('kind', 'norm', 'eps'),
  [('pgd', 'linf', 0.05), ('fast', 'l2', 0.3), ('trades', 'l2', 0.3), ('mart', 'l1', 2.0)],
)
def test_perturbations_are_in_the_ball(plain, kind, norm, eps):
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.random((4, 3, 3, 3)), jnp.float32)
  w = jnp.asarray(rng.normal(size=(27, 3)), jnp.float32)
  targets = jax.nn.one_hot(jnp.arange(4) % 3, 3)

  def forward(params, stats, x, key, train):
    return x.reshape(4, -1) @ params, stats

  plain.adversarial.update(kind=kind, norm=norm, eps=eps, step_size=0.0, random_start=True)
  keys = tuple(jax.random.split(jax.random.key(0)))
  rows = (images, targets, None)
  found = jax.jit(lambda: adversarial.perturb(forward, plain.adversarial, w, {}, rows, keys))()
  found = np.asarray(found)
  delta = (found - np.asarray(images)).reshape(4, -1)
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  length = np.linalg.norm(delta, order, axis=1)
  assert (length <= eps * (1 + 1e-5)).all() and (length > 0.1 * eps).all()
  assert found.min() >= 0 and found.max() <= 1
  if kind != 'trades':
    y = np.asarray(targets, np.float64)
    before, after = (ce(np.asarray(x).reshape(4, -1), y, np.asarray(w)) for x in (images, found))
    assert (after > before).all()


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [('pgd', 2.5 * EPS / 4), ('fast', 1.25 * EPS), ('free', EPS), ('trades', 7 / 31 * EPS)],
)
def test_published_step_sizes(plain, kind, expected):
  plain.adversarial.update(kind=kind, step_size=0.0)
  assert adversarial.step_size(plain.adversarial) == pytest.approx(expected)
  plain.adversarial.step_size = 0.01
  assert adversarial.step_size(plain.adversarial) == 0.01


@pytest.mark.parametrize(('kind', 'passes'), [('pgd', 1), ('trades', 2)])
def test_statistics_see_each_pass_of_the_update_once(plain, batch, tiny_net, kind, passes):
  batch = {**batch, 'label': batch['label'] % K}
  results = {}
  for mode in ('eval', 'train'):
    plain.adversarial.update(kind=kind, batch_norm=mode)
    net = tiny_net(num_classes=K)
    (_, end), (results[mode],) = train(plain, [batch], model=net, size=8)
    assert end.batch_stats['norm']['count'] == passes
  # At the start the running statistics are not those of the batch: other gradients, other corners.
  assert results['train']['loss'] != results['eval']['loss']


@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_devices_agree_with_synchronised_batch_norm(plain, batch, tiny_net, mode):
  batch = {**batch, 'label': batch['label'] % K}
  plain.adversarial.update(kind='pgd', batch_norm=mode)
  plain.train.sync_bn = True
  net = tiny_net(num_classes=K, bn_axis_name=parallel.AXIS)
  one, four = (train(plain, [batch] * 3, devices, net, 8) for devices in (1, 4))
  curves = [[float(m['loss']) for m in run[1]] for run in (one, four)]
  np.testing.assert_allclose(*curves, rtol=1e-4)


def test_the_ball_of_free_training():
  delta = jnp.array([[3.0, -4.0], [0.3, 0.4], [0.0, 0.0]])
  found = adversarial._into_ball(delta, 'l2', 1.0)
  np.testing.assert_allclose(found, [[0.6, -0.8], [0.3, 0.4], [0.0, 0.0]], rtol=1e-6)
  found = adversarial._into_ball(delta, 'linf', 0.35)
  np.testing.assert_allclose(found, [[0.35, -0.35], [0.3, 0.35], [0.0, 0.0]], rtol=1e-6)


def test_erased_pixels_are_cut_to_the_pixel_range_first(plain, images, monkeypatch):
  """The noise of random erasing has no bounds; here it is 2 everywhere, which becomes white."""
  monkeypatch.setattr(classifying.device, 'random_erasing', lambda key, x, *_, **__: 0 * x + 2)
  plain.augment.erasing = 1.0
  plain.adversarial.update(kind='trades', eps=0.0)
  states, (metrics,) = train(plain, [images])
  (_, y), w = numbers(images), weights(states[0])
  assert metrics['loss'] == pytest.approx(ce(np.ones((8, 12)), y, w).mean(), rel=1e-5)


def test_computing_in_bfloat16_perturbs_in_float32(plain, images):
  class Half(nn.Module):
    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
      x = x.reshape(x.shape[0], -1).astype(jnp.bfloat16)
      return nn.Dense(K, use_bias=False, name='head', dtype=jnp.bfloat16)(x)

  plain.adversarial.update(kind='pgd', eps=0.5, step_size=0.5)
  (start, _), (metrics,) = train(plain, [images], model=Half())
  (x, y), w = numbers(images), weights(start)
  up = np.sign((w @ (1 - 2 * y).T).T)
  assert metrics['adversarial_loss'] == pytest.approx(
    ce(np.clip(x + 0.5 * up, 0, 1), y, w).mean(), rel=0.02
  )
  assert metrics['loss'].dtype == np.float32


@pytest.mark.parametrize('devices', [1, 2])
def test_robust_accuracy_of_a_linear_model(plain, images, devices, zero_totals):
  """Right after every perturbation: the margin exceeds what the corner takes from it."""
  plain.adversarial.eval_steps = 10
  w = np.random.default_rng(3).normal(size=(12, K)).astype(np.float32)
  # Labels as the model has them, but for one image; one row is padding.
  (x, _) = numbers(images)
  logits = x @ w
  labels = logits.argmax(-1).astype(np.int32)
  labels[0] = 1 - labels[0]
  plain.adversarial.eps = 0.03
  mask = np.arange(8) < 7
  batch = {'image': images['image'], 'label': labels, 'mask': mask}
  mesh = parallel.make_mesh(jax.devices()[:devices])
  mapped = parallel.map_eval_step(classifying.make_eval_step(Linear(), plain), mesh)
  totals = {**zero_totals, 'robust_top1': jnp.zeros((), jnp.int32)}
  variables = {'params': {'head': {'kernel': w}}}
  sums = jax.device_get(mapped(variables, parallel.to_global(batch, mesh), totals))
  towards = np.sign((w @ (1 - 2 * np.eye(K)[labels]).T).T)
  attacked = np.clip(x + 0.03 * towards, 0, 1) @ w
  robust = int(((attacked.argmax(-1) == labels) & mask).sum())
  assert (sums['top1'], sums['robust_top1']) == (6, robust)
  assert 0 < robust < 6  # some hold, some fall
