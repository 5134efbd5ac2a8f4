"""Measures of a trained classifier against their definitions, in NumPy."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax.evaluation.records import RESULTS, Records
from rest_jax.train import validation
from rest_jax.train.parallel import make_mesh
from rest_jax.train.validation import BINS, missing, validate
from rest_jax.train.validation_report import confusions

K, COUNT = 6, 23


@jax.tree_util.register_pytree_node_class
class Lookup:
  """Finds an example's logits by its first pixel, so that any logits can be judged."""

  def __init__(self, table):
    self.table = table

  def __call__(self, images):
    return self.table[jnp.round(images[:, 0, 0, 0] * 255.0).astype(jnp.int32)]

  def tree_flatten(self):
    return (self.table,), None

  @classmethod
  def tree_unflatten(cls, _, leaves):
    return cls(*leaves)


def batches(labels, size=8):
  for start in range(0, len(labels), size):
    rows = range(start, min(start + size, len(labels)))
    image = np.zeros((size, 2, 2, 3), np.uint8)
    label = np.zeros(size, np.int32)
    image[: len(rows)] += np.array(rows, np.uint8)[:, None, None, None]
    label[: len(rows)] = labels[rows.start : rows.stop]
    yield {'image': image, 'label': label, 'mask': np.arange(size) < len(rows)}


@pytest.mark.parametrize(
  ('batches', 'speed'),
  [
    ([8, 8, 8], 8.0),
    ([8, 8, 8, 1], 8.0),  # of nine more images in two seconds it was 5.67
    ([8, 8, 7], 8.0),
    ([8, 3], None),  # of the one full batch the time is that of compiling
    ([8], None),
    ([3], None),
    ([], None),
  ],
)
def test_the_speed_is_of_full_batches(monkeypatch, batches, speed):
  """A batch takes a second, however many of its rows are images."""
  now = itertools.count()
  monkeypatch.setattr(validation.time, 'perf_counter', lambda: float(next(now)))
  judging, records = validation._Judging(None), Records(None, {})
  meter = validation._Speed(judging, None)
  meter.first = batches[0] if batches else 0
  for images in batches:
    judging.warm.add('device')
    meter('model', images)
  meter.keep(records)
  found = [row['images_per_second'] for row in records.rows('speed').values()]
  assert found == ([] if speed is None else [speed])


@pytest.fixture(scope='module')
def measured():
  rng = np.random.default_rng(3)
  labels = rng.integers(0, K - 1, COUNT).astype(np.int32)  # the last class has no example
  logits = rng.normal(0, 2, (COUNT, K)).astype(np.float32)
  logits[np.arange(COUNT), labels] += 1.5
  result = validate(Lookup(jnp.asarray(logits)), batches(labels), make_mesh(), num_classes=K)
  return labels, logits.astype(np.float64), result


def test_accuracy_loss_and_confusions(measured):
  labels, logits, result = measured
  order = np.argsort(-logits, axis=1)
  assert result.count == COUNT
  assert result.top1 == pytest.approx((order[:, 0] == labels).mean())
  assert result.top5 == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
  log_sum = np.log(np.exp(logits).sum(1))
  assert result.loss == pytest.approx((log_sum - logits[np.arange(COUNT), labels]).mean(), rel=1e-5)
  expected = np.zeros((K, K), int)
  np.add.at(expected, (labels, order[:, 0]), 1)
  np.testing.assert_array_equal(result.confusion, expected)
  assert np.isnan(result.class_top1[K - 1])
  for k in range(K - 1):
    assert result.class_top1[k] == pytest.approx((order[labels == k, 0] == k).mean())


def test_calibration(measured):
  labels, logits, result = measured
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  confidence, right = p.max(1), p.argmax(1) == labels
  ece, edges = 0.0, np.linspace(0, 1, BINS + 1)
  for i, (low, high) in enumerate(itertools.pairwise(edges)):
    inside = (confidence > low) & (confidence <= high)
    assert result.bins[i, 0] == inside.sum()
    if inside.any():
      gap = abs(confidence[inside].mean() - right[inside].mean())
      ece += inside.mean() * gap
      assert result.bins[i, 1:] == pytest.approx(
        [confidence[inside].mean(), right[inside].mean()], abs=1e-5
      )
    else:
      assert np.isnan(result.bins[i, 1:]).all()
  assert result.ece == pytest.approx(ece, abs=1e-5)


def test_one_logit_is_as_sure_as_its_sigmoid():
  """A softmax over it would be sure of everything, at no loss."""
  logits = np.linspace(-2, 3, 20, dtype=np.float32)[:, None]
  labels = np.zeros(20, np.int32)
  found = validate(Lookup(jnp.asarray(logits)), batches(labels), make_mesh(), num_classes=1)
  shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
  np.testing.assert_allclose(found.ece, 1 - shares.mean(), rtol=1e-5)
  np.testing.assert_allclose(found.loss, -np.log(shares).mean(), rtol=1e-5)


def test_mistakes_by_frequency(measured):
  *_, result = measured
  found = confusions(result, most=3)
  counts = [count for *_, count in found]
  assert counts == sorted(counts, reverse=True) and counts[0] == max(
    result.confusion[i, j] for i in range(K) for j in range(K) if i != j
  )
  assert all(i != j and result.confusion[i, j] == count for i, j, count in found)


def test_one_batch_has_no_throughput():
  result = validate(
    Lookup(jnp.eye(K)), batches(np.arange(4, dtype=np.int32)), make_mesh(), num_classes=K
  )
  assert result.top1 == 1.0 and np.isnan(result.images_per_second)


@pytest.fixture(scope='module')
def case():
  rng = np.random.default_rng(5)
  labels = rng.integers(0, K, COUNT).astype(np.int32)
  return Lookup(jnp.asarray(rng.normal(0, 2, (COUNT, K)).astype(np.float32))), labels


def same(first, second):
  for name in ('count', 'top1', 'top5', 'loss', 'ece', 'confusion', 'class_top1', 'bins'):
    np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def test_four_devices_find_what_one_finds_and_all_are_busy(case, monkeypatch):
  model, labels = case
  used, judged = set(), validation._Judging.__call__
  together = threading.Barrier(4, timeout=60)

  def watched(self, name, batch, device):
    used.add(device)
    assert batch.size == 2
    if batch.indices[0] < 8:
      together.wait()  # the four parts of the first batch are under way at once
    return judged(self, name, batch, device)

  alone = validate(model, batches(labels, 2), make_mesh(jax.devices()[:1]), num_classes=K)
  monkeypatch.setattr(validation._Judging, '__call__', watched)
  same(validate(model, batches(labels), make_mesh(), num_classes=K), alone)
  assert used == set(jax.devices())


def test_it_goes_on_where_it_was_stopped(case, tmp_path, monkeypatch):
  model, labels = case
  mesh = make_mesh(jax.devices()[:1])
  whole = validate(model, batches(labels), mesh, num_classes=K)

  def ends():
    yield from itertools.islice(batches(labels), 2)
    raise KeyboardInterrupt

  records = Records(tmp_path / RESULTS, {})
  with pytest.raises(KeyboardInterrupt):
    validate(model, ends(), mesh, num_classes=K, records=records, images=range(COUNT))
  asked, judged = [], validation._Judging.__call__

  def watched(self, name, batch, device):
    asked.extend(batch.indices.tolist())
    return judged(self, name, batch, device)

  monkeypatch.setattr(validation._Judging, '__call__', watched)
  records = Records(tmp_path / RESULTS, {})
  assert missing(records, range(COUNT)) == list(range(16, COUNT))
  rest = itertools.islice(batches(labels), 2, None)
  same(validate(model, rest, mesh, num_classes=K, records=records, images=range(COUNT)), whole)
  assert asked == list(range(16, COUNT))
  again = Records(tmp_path / RESULTS, {})
  same(validate(model, (), mesh, num_classes=K, records=again, images=range(COUNT)), whole)


def test_the_speed_is_kept_with_the_results(case, tmp_path):
  model, labels = case
  records = Records(tmp_path / RESULTS, {})
  mesh = make_mesh(jax.devices()[:1])
  through = []
  first = validate(
    model,
    batches(labels),
    mesh,
    num_classes=K,
    records=records,
    images=range(COUNT),
    progress=lambda _, images: through.append(images),
  )
  assert first.images_per_second > 0 and through == [8, 8, 7]
  again = validate(model, (), mesh, num_classes=K, records=records, images=range(COUNT))
  assert again.images_per_second == pytest.approx(first.images_per_second)
