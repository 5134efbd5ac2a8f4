"""What is not a number: never a hit, never the best, never released, always one line."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from drawn_weights import drawn
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.models import registry
from rest_jax.models.classifier import Classifier
from rest_jax.train import (
  classifying,
  evaluate,
  loop,
  measured,
  parallel,
  release,
  run,
  totals,
  validation,
  validation_command,
)
from rest_jax.train.losses import hit_rate, hits_at, kl_divergence, predictions, soft_cross_entropy
from rest_jax.train.optim import clip_by_norm, global_norm, warmup_cosine

NAN, INF = float('nan'), float('inf')
K = 4


@pytest.mark.parametrize(
  ('row', 'label', 'top1', 'top2'),
  [
    ([3, 1, 2, 0], 0, True, True),
    ([3, 1, 2, 0], 2, False, True),
    ([1, 1, 1, 1], 0, False, False),  # equal logits are no decision for any class
    ([2, 2, 0, 0], 0, False, True),
    ([2, 1, 1, 0], 1, False, False),
    ([NAN, NAN, NAN, NAN], 0, False, False),
    ([NAN, 2, 1, 0], 1, False, False),
    ([2, 1, 0, NAN], 0, False, False),
    ([INF, 1, 0, 0], 0, False, False),
    ([INF, 1, 0, 0], 1, False, False),
    ([-INF, 1, 0, -INF], 1, True, True),  # classes that are ruled out
    ([-INF, 1, 0, -INF], 0, False, False),
    ([-INF, -INF, -INF, -INF], 0, False, False),
  ],
)
def test_hits(row, label, top1, top2):
  logits, labels = jnp.array([row], jnp.float32), jnp.array([label])
  assert [bool(hits_at(logits, labels, k)[0]) for k in (1, 2)] == [top1, top2]
  assert float(hit_rate(logits, jax.nn.one_hot(labels, K))) == top1
  assert bool(predictions(logits, labels)[0] == label) == top1
  finite = all(np.isfinite(row))
  assert bool(hits_at(logits, labels, K)[0]) == (finite or top1)


def test_nan_is_no_hit_of_the_issue_kind():
  found = hits_at(jnp.array([[NAN, NAN, NAN], [0.0, 1.0, 2.0]]), jnp.array([0, 0]), 1)
  assert found.tolist() == [False, False]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=K, max_size=K))
def test_the_classes_that_are_right_are_never_more_than_k(row):
  """Over all labels at most k can be hits, however many logits are equal."""
  logits, labels = jnp.tile(jnp.array([row]), (K, 1)), jnp.arange(K)
  for k in range(1, K + 1):
    assert int(hits_at(logits, labels, k).sum()) <= k


@pytest.fixture(scope='module')
def mesh():
  return parallel.make_mesh(jax.devices()[:2])


@jax.tree_util.register_pytree_node_class
class Rows:
  """A classifier whose logits are rows of a table, told by the first pixel of an image."""

  num_classes, class_names = K, tuple('abcd')

  def __init__(self, table):
    self.table = table

  def __call__(self, images):
    return self.table[jnp.round(images[:, 0, 0, 0] * 255.0).astype(jnp.int32)]

  def tree_flatten(self):
    return (self.table,), None

  @classmethod
  def tree_unflatten(cls, _, leaves):
    return cls(*leaves)


def batches(labels, size=4):
  for first in range(0, len(labels), size):
    rows = np.arange(first, first + size)
    image = np.zeros((size, 2, 2, 3), np.uint8) + (rows % 256).astype(np.uint8)[:, None, None, None]
    there = rows < len(labels)
    label = np.where(there, np.resize(labels, first + size)[rows], 0).astype(np.int32)
    yield {'image': image, 'label': label, 'mask': there}


def table(count, **broken):
  rows = np.tile(np.float32([3, 2, 1, 0]), (256, 1))
  for place, row in broken.items():
    rows[int(place[1:])] = row
  return Rows(jnp.asarray(rows)), np.zeros(count, np.int32)


def test_an_evaluation_says_which_logits_of_which_images(mesh):
  model, labels = table(10, i1=[NAN, 0, 0, 0], i6=[INF, NAN, 0, 0], i9=[0, 0, 0, -INF])
  with pytest.raises(UserError, match=r'^4 logits of the model .* 3 of 10 .*\(number 1, 6, 9 from'):
    validation.validate(model, batches(labels), mesh, num_classes=K)
  model, labels = table(10, i11=[NAN] * K)  # a row of padding
  assert validation.validate(model, batches(labels), mesh, num_classes=K).top1 == 1.0


def test_no_images_are_no_accuracy(mesh):
  model, labels = table(4)
  masked = [batch | {'mask': np.zeros(4, bool)} for batch in batches(labels)]
  with pytest.raises(UserError, match='no image to judge'):
    validation.validate(model, masked, mesh, num_classes=K)


def test_a_model_that_knows_nothing_is_not_right_by_its_first_class(mesh):
  model = Rows(jnp.zeros((256, K)))
  found = validation.validate(
    model, batches(np.arange(12, dtype=np.int32) % 3), mesh, num_classes=K
  )
  assert found.top1 == 0.0 and np.trace(found.confusion) == 0
  np.testing.assert_array_equal(found.class_top1, [0, 0, 0, NAN])


def test_long_sums_keep_their_last_bits():
  """Half a million equal losses: plain float32 is off in the third digit."""
  add = jax.jit(
    lambda total: jax.lax.fori_loop(0, 500_000, lambda _, t: totals.add(t, 33.3), total)
  )
  exact = 500_000 * float(np.float32(33.3))
  assert totals.value_of(add(jnp.zeros(2))) == pytest.approx(exact, rel=1e-7)


def test_the_command_says_which_model_and_what_to_do():
  sums = {'count': 9, 'bad': np.array([4, 1]), 'bad_at': np.array([3, *[2**31 - 1] * 4])}
  with (
    pytest.raises(UserError, match=r'^work/x on y \(test\): 4 logits .* give --model another'),
    validation_command._naming('work/x', 'y (test)'),
  ):
    totals.check_finite(sums, 'logits')


# ---- Training --------------------------------------------------------------------------------


@pytest.fixture
def experiment(config, image_folder, tiny_net, monkeypatch, shared_tasks):
  monkeypatch.setitem(registry._BUILDERS, 'tiny_net', tiny_net)
  config.model.name = 'tiny_net'
  config.data.name = str(image_folder)
  config.train.epochs = 1.0
  config.log.every = 2
  return config


@pytest.mark.parametrize('every', [1 / 6, 1.0])
def test_a_training_that_diverges_ends_with_one_line(experiment, tmp_path, every):
  """At whatever step it is measured; nothing that is no number is kept, and it can be resumed."""
  experiment.optim.update(lr=1e38, clip_norm=0.0)
  experiment.train.eval_every = every
  for _ in range(2):
    with pytest.raises(UserError, match=r'step \d.*[Ll]ower optim.lr') as caught:
      loop.train(experiment, tmp_path / 'run')
    assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run' / 'model').exists()
  log = tmp_path / 'run' / 'metrics.jsonl'
  for line in log.read_text().splitlines() if log.exists() else ():
    json.loads(line, parse_constant=lambda word: pytest.fail(word))
  experiment.optim.lr = 1e-2
  assert loop.train(experiment, tmp_path / 'other')['best']['top1'] > 0


def result(step, **values):
  return {'step': step, 'epoch': 1.0, 'count': 20, 'top1': 0.5, 'top5': 1.0, 'loss': 1.0} | values


@pytest.mark.parametrize(
  ('worse', 'better'),
  [
    (result(1, top1=1.0, loss=NAN), result(2, top1=0.1)),  # kept by a run from before
    (result(1, top1=NAN), result(2, top1=0.0)),
    (result(1, robust_top1=NAN), result(2, robust_top1=0.0)),
    ({'psnr': NAN, 'loss': NAN}, {'psnr': 3.0, 'loss': 1.0}),
    ({'psnr': INF, 'loss': 0.0}, {'psnr': 3.0, 'loss': 1.0}),
  ],
)
def test_what_is_no_number_can_be_beaten(worse, better):
  assert measured.merit(better) > measured.merit(worse)
  assert measured.better(worse, better) is better and measured.better(better, worse) is better


@pytest.mark.parametrize(
  ('worse', 'better'),
  [
    (result(1, top1=1.0, loss=0.7), result(2, top1=1.0, loss=0.05)),
    (
      result(1, robust_top1=0.2, top1=0.6, loss=0.1),
      result(2, robust_top1=0.2, loss=0.9, top1=1.0),
    ),
    (result(1, robust_top1=0.2, loss=0.9), result(2, robust_top1=0.2, loss=0.1)),
    ({'AP': 0.5, 'loss': 2.0}, {'AP': 0.5, 'loss': 1.0}),
  ],
)
def test_of_equal_measures_the_clean_accuracy_then_the_loss_decides(worse, better):
  assert measured.rank(better) > measured.rank(worse)
  assert measured.merit(better) == measured.merit(worse)
  assert measured.better(worse, better) is better and measured.better(better, worse) is better


@pytest.mark.parametrize(
  ('plain', 'averaged', 'lead'),
  [
    (result(1, top1=0.4), result(1), 'measured better'),
    (result(1, robust_top1=0.2), result(1, robust_top1=0.2, top1=0.6), 'measured better'),
    (result(1, loss=0.9), result(1), 'measured as well at a lower loss'),
    (result(1), result(1), 'measured no worse'),
    (None, result(1), 'alone gives numbers'),
    (result(1), None, 'alone gives numbers'),
  ],
)
def test_the_card_says_better_of_what_was_better(config, plain, averaged, lead):
  config.train.ema = 0.9
  assert measured.lead(plain, averaged) == lead
  best = measured.better(plain, averaged)
  best = best | {'lead': lead, 'averaged': best is averaged}
  chosen = 'the average' if best['averaged'] else 'the weights themselves'
  results = release.Results(best, best, 1.0, True, 'x')
  assert f'of which {chosen} {lead}; ' in release.card(config, results, 'run')


def test_the_better_of_weights_and_average_is_released(experiment, tmp_path, monkeypatch):
  measure = evaluate.evaluate
  experiment.train.ema = 0.9
  seen, favoured = [], []

  def watched(step, variables, *args):
    seen.append(jax.device_get(variables))
    return measure(step, variables, *args) | {'top1': favoured[len(seen) - 1]}

  monkeypatch.setattr(classifying, 'evaluate', watched)
  for chosen, accuracies in (('average', (0.33, 1.0)), ('weights', (1.0, 0.33))):
    seen.clear()
    favoured[:] = accuracies
    best = loop.train(experiment, tmp_path / chosen)['best']
    assert (best['top1'], best['averaged']) == (1.0, chosen == 'average')
    kernel = seen[chosen == 'average']['params']['head']['kernel']
    released = Classifier.load(tmp_path / chosen / 'model').variables['params']['head']['kernel']
    np.testing.assert_array_equal(released, kernel)
    card = (tmp_path / chosen / 'model' / 'README.md').read_text()
    assert ('the average' if chosen == 'average' else 'the weights themselves') in card


def test_classes_that_are_numbered_otherwise_are_not_gone_on_with(tmp_path):
  saved = {'classes': ['a', 'b'], 'files': {'train': '1'}}
  sources = types.SimpleNamespace(name='x', class_names=('b', 'a'), digests={'train': '1'})
  with pytest.raises(UserError, match='its classes have other numbers'):
    run._check_data(saved, sources, tmp_path)


def test_class_names_are_checked_before_an_epoch_is_spent(experiment, tmp_path, monkeypatch):
  from rest_jax.train import pipeline

  sources = type('Sources', (), {'class_names': ('a', 'b\udcff'), 'train': range(9)})
  monkeypatch.setattr(pipeline, 'load_sources', lambda config: sources)
  with pytest.raises(UserError, match=r"class name 'b\\udcff' is not UTF-8"):
    loop.train(experiment, tmp_path / 'run')


# ---- Weights ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def classifier():
  options = dict(width=4, depths=(1, 1, 1, 1))
  variables = jax.device_get(
    drawn(registry.create_model('resnet18', 3, **options), np.zeros((1, 32, 32, 3), np.float32))
  )
  return Classifier.create('resnet18', variables, num_classes=3, overrides=options)


@pytest.fixture
def saved(classifier, tmp_path):
  classifier.save(tmp_path / 'model')
  return classifier, tmp_path / 'model'


@pytest.mark.parametrize('bad', [np.float32(NAN), np.float32(-INF), np.float16(INF), 1e300])
def test_weights_that_are_no_numbers_are_not_loaded(saved, bad):
  path = saved[1] / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  bias = tensors['params/head/bias'].astype(np.asarray(bad).dtype)
  bias[1] = bad
  safetensors.numpy.save_file(tensors | {'params/head/bias': bias}, path)
  with pytest.raises(
    UserError, match=r'1 of \d+ arrays hold NaN or infinity: params/head/bias \(1'
  ):
    Classifier.load(saved[1])


def test_weights_that_are_no_numbers_are_not_saved(saved, tmp_path):
  huge = jax.tree.map(lambda x: np.full_like(x, 3.4e38) if x.ndim == 4 else x, saved[0].variables)
  classifier = Classifier(saved[0].module, huge, saved[0].config, saved[0].class_names)
  classifier.save(tmp_path / 'wide')
  with pytest.raises(UserError, match=r'as bfloat16: .* arrays hold NaN or infinity'):
    classifier.save(tmp_path / 'short', dtype='bfloat16')


# ---- Arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize('scale', [1e-37, 1e-25, 1e-10, 1.0, 1e10, 1e25, 1e37])
def test_norms_and_clipping_at_every_scale(scale):
  tree = {'a': jnp.full((3,), 2.0 * scale), 'b': jnp.full((4, 1), scale)}
  assert float(global_norm(tree)) == pytest.approx(4.0 * scale, rel=1e-6)
  clip = clip_by_norm(2.0 * scale)
  clipped, _ = clip.update(tree, clip.init(tree))
  np.testing.assert_allclose(clipped['a'], scale, rtol=1e-6)
  kept, _ = clip_by_norm(min(5.0 * scale, 3e38)).update(tree, clip.init(tree))
  np.testing.assert_array_equal(kept['b'], tree['b'])


def test_norms_of_nothing_and_of_no_numbers():
  assert float(global_norm({})) == 0.0 and float(global_norm({'a': jnp.zeros(3)})) == 0.0
  for bad in (NAN, INF, -INF):
    assert not np.isfinite(global_norm({'a': jnp.array([1.0, bad])}))


@given(st.floats(1e-6, 1.0), st.integers(0, 99))
def test_divergence_of_near_distributions(distance, seed):
  rng = np.random.default_rng(seed)
  z = rng.normal(size=(1, 5)).astype(np.float32)
  other = (z + distance * rng.normal(size=(1, 5))).astype(np.float32)
  p, q = (np.exp(np.float64(x)) / np.exp(np.float64(x)).sum() for x in (z, other))
  want = (p * np.log(p / q)).sum()
  got = float(kl_divergence(jnp.asarray(z), jnp.asarray(other))[0])
  # Logarithms are exact to some 2e-7, so a divergence of distance d to 2e-7 d.
  assert got >= 0
  assert got == pytest.approx(want, rel=1e-4, abs=1e-6 * distance)


def test_what_is_impossible_costs_nothing_where_it_is_not_asked_for():
  logits = jnp.array([[0.0, -1e38 * 3, 3e38]])
  assert float(soft_cross_entropy(logits, jnp.array([[0.0, 0.0, 1.0]]))[0]) == 0.0
  assert float(kl_divergence(logits, logits)[0]) == 0.0
  grad = jax.grad(lambda z: kl_divergence(z, z[:, ::-1]).sum())(jnp.array([[0.0, -200.0, 90.0]]))
  assert np.isfinite(grad).all()


def test_the_schedule_ends_where_it_should_after_many_steps():
  total = 2**25 + 1
  schedule = warmup_cosine(1.0, total=total, warmup=1000, start=0.0, floor=0.0)
  left = np.array([1, 10, 1000])
  rates = np.array([float(schedule(jnp.int32(total - n))) for n in left])
  want = np.sin(0.5 * np.pi * left / (total - 1000)) ** 2
  np.testing.assert_allclose(rates, want, rtol=1e-4)
  assert float(schedule(total)) == 0.0 and float(schedule(999)) < float(schedule(1000)) == 1.0
