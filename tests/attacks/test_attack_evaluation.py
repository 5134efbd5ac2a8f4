"""The evaluation: grids of radii, resuming, files, bad input."""

import functools
import json
import tempfile

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_toys import CLASSES, SHAPE, Calls, data, linear, linear_model
from hypothesis import given
from jax.tree_util import Partial
from PIL import Image

from rest_jax import attacks
from rest_jax.errors import UserError
from rest_jax.evaluation.records import RESULTS

RADII = (0.005, 0.02, 0.3)
KEY = jax.random.key(0)


def run(model, images, labels=None, *, radii=RADII, norm='linf', **options):
  """An evaluation without what takes time."""
  options = {'key': jax.random.key(3), 'check_health': False, 'pictures': 0} | options
  threats = attacks.epsilon_grid(norm, radii)
  return attacks.evaluate(model, images, labels, threats=threats, **options)


@pytest.fixture(scope='module')
def model():
  return linear_model()


def exact(model, **options):
  return attacks.Attack('exact', Calls(model.args[0], **options), norms=('linf',))


def test_robust_accuracy_of_a_linear_model_is_the_closed_form(model):
  images, labels = data(model, 40, wrong=4)
  weights = np.asarray(model.args[0], np.float64)
  logits = images.reshape(40, -1).astype(np.float64) @ weights
  found = run(model, images, labels, attacks=[exact(model)])
  for row, eps in zip(found.rows, RADII, strict=True):
    held = 0
    for i in range(4, 40):
      gains = []
      for other in set(range(CLASSES)) - {labels[i]}:
        w = weights[:, other] - weights[:, labels[i]]
        room = np.where(w > 0, np.minimum(eps, 1 - images[i].ravel()), 0)
        room = np.where(w < 0, np.minimum(eps, images[i].ravel()), room)
        gains.append(logits[i, other] - logits[i, labels[i]] + (np.abs(w) * room).sum())
      held += max(gains) < 0
    assert row.robust_accuracy.value == held / 40
    assert row.clean_accuracy.value == 36 / 40
  assert found.rows[0].robust_accuracy.value > found.rows[1].robust_accuracy.value > 0


def test_what_fell_at_a_smaller_radius_is_not_attacked_again(model):
  images, labels = data(model, 20, wrong=3)
  attack = exact(model)
  found = run(model, images, labels, attacks=[attack], batch_size=8)
  first, second, third = (found.records[attacks.RunName('exact', 'linf', e)] for e in RADII)
  fallen = [sum(r.success for r in records.values()) for records in (first, second)]
  assert attack.function.attacked == 17 + (17 - fallen[0]) + (17 - fallen[1])
  for i, record in third.items():
    if first[i].success:
      assert record.reused == RADII[0] and record.distance == first[i].distance
    elif second[i].success:
      assert record.reused == RADII[1] and record.distance == second[i].distance
    else:
      assert record.reused is None
    assert record.confirmed and record.inside and record.distance <= 0.3 + 1e-6


def test_nothing_correct_returns_at_once(model):
  images, labels = data(model, 10, wrong=10)
  attack = exact(model)
  found = run(model, images, labels, attacks=[attack])
  assert attack.function.batches == []
  assert all(row.robust_accuracy.value == 0 for row in found.rows)
  assert all(r.queries == 0 and not r.success for f in found.records.values() for r in f.values())


def test_batches_have_one_shape_and_filler_is_nothing_to_attack(model):
  images, labels = data(model, 11)
  attack = exact(model)
  run(model, images, labels, attacks=[attack], batch_size=4, radii=[0.005])
  shapes = {images.shape for images, _, _ in attack.function.batches}
  assert shapes == {(4, *SHAPE)}
  assert [int(attacked.sum()) for _, attacked, _ in attack.function.batches] == [4, 4, 3]


def test_one_compiled_form_for_a_grid_and_ragged_batches():
  traced = []

  def counted(weights, images):
    traced.append(images.shape)
    return linear(weights, images)

  images, labels = data(linear_model(), 10)
  for seed in (0, 1):
    fresh = Partial(counted, linear_model(seed).args[0])
    before = len(traced)
    run(fresh, images, labels, attacks=[attacks.named_attack('pgd', steps=2)], batch_size=4)
    added = len(traced) - before
  assert len(traced) > 0 and added == 0  # other weights, radii and tails: nothing traced anew


def test_results_are_those_of_the_attack_called_on_everything(model):
  images, labels = data(model, 10)
  pgd = attacks.named_attack('pgd', steps=3)
  key = jax.random.key(5)
  known = np.asarray(attacks.pgd(model, images, labels, key=key, eps=0.01, steps=3))
  away = np.abs(known.astype(np.float64) - images).max(axis=(1, 2, 3))
  for size in (3, 10):
    found = run(model, images, labels, attacks=[pgd], radii=[0.01], key=key, batch_size=size)
    records = found.records[attacks.RunName('pgd', 'linf', 0.01)]
    np.testing.assert_allclose([records[i].distance for i in range(10)], away, rtol=0, atol=1e-7)
  part = run(
    model, images[6:], labels[6:], attacks=[pgd], radii=[0.01], key=key, indices=range(6, 10)
  )
  lower = part.records[attacks.RunName('pgd', 'linf', 0.01)]
  assert [lower[i].adversarial for i in range(6, 10)] == [
    records[i].adversarial for i in range(6, 10)
  ]


def test_an_evaluation_that_was_stopped_goes_on(model, tmp_path):
  images, labels = data(model, 20, wrong=2)
  options = dict(batch_size=5, output_dir=tmp_path / 'out', save_images=True)
  stopped = exact(model, fail_at=2)
  with pytest.raises(KeyboardInterrupt):
    run(model, images, labels, attacks=[stopped], **options)
  path = tmp_path / 'out' / RESULTS
  path.write_bytes(path.read_bytes()[:-9])  # killed while it wrote
  rest = exact(model)
  found = run(model, images, labels, attacks=[rest], **options)
  whole_attack = exact(model)
  whole = run(model, images, labels, attacks=[whole_attack])
  assert found.records == whole.records and found.rows == whole.rows
  assert stopped.function.attacked - 1 + rest.function.attacked == whole_attack.function.attacked
  again = exact(model)
  assert run(model, images, labels, attacks=[again], **options).rows == whole.rows
  assert again.function.batches == []
  with np.load(tmp_path / 'out' / 'adversarial' / 'exact_linf_0.3.npz') as file:
    assert file['index'].tolist() == list(range(2, 20))
    np.testing.assert_array_equal(file['label'], labels[2:])
    away = np.abs(file['images'] - images[2:]).max(axis=(1, 2, 3))
  records = found.records[attacks.RunName('exact', 'linf', 0.3)]
  np.testing.assert_allclose(away, [records[i].distance for i in range(2, 20)], atol=1e-6)
  left = {p.name for p in (tmp_path / 'out').rglob('*') if p.is_file()}
  assert left == {RESULTS, 'summary.json', 'summary.md'} | {
    f'exact_linf_{e:.9g}.npz' for e in RADII
  }


def test_more_radii_later_reuse_what_is_there(model, tmp_path):
  images, labels = data(model, 12)
  run(model, images, labels, attacks=[exact(model)], radii=[0.005], output_dir=tmp_path)
  later = exact(model)
  found = run(model, images, labels, attacks=[later], radii=[0.02], output_dir=tmp_path)
  fresh = run(model, images, labels, attacks=[exact(model)], radii=[0.02])
  assert found.rows[0].robust_accuracy == fresh.rows[0].robust_accuracy
  assert 0 < later.function.attacked < 12


def test_a_resumed_run_refuses_other_images_and_models(model, tmp_path):
  images, labels = data(model, 6)
  options = dict(attacks=[exact(model)], radii=[0.01], output_dir=tmp_path)
  run(model, images, labels, **options)
  with pytest.raises(UserError, match='another image 2'):
    changed = images.copy()
    changed[2, 0, 0, 0] = 1 - changed[2, 0, 0, 0]
    run(model, changed, labels, **options)
  with pytest.raises(UserError, match='another model'):
    run(linear_model(1), images, labels, **options)
  with pytest.raises(UserError, match='other settings: seed'):
    run(model, images, labels, key=jax.random.key(4), **options)


def test_a_resumed_run_refuses_the_same_values_with_another_gradient(model, tmp_path):
  images, labels = data(model, 6)
  quantise = lambda x: jnp.round(x * 16) / 16  # noqa: E731
  options = dict(attacks=['fgsm'], radii=[0.05], output_dir=tmp_path)
  first = run(lambda x: model(quantise(x)), images, labels, **options)
  assert run(lambda x: model(quantise(x)), images, labels, **options).rows == first.rows
  straight = attacks.bpda(quantise)
  with pytest.raises(UserError, match='another model'):
    run(lambda x: model(straight(x)), images, labels, **options)


def test_a_resumed_run_refuses_an_attack_that_encloses_something_else(model, tmp_path):
  def shift(logits_fn, images, labels, *, eps, share=1.0):
    return np.clip(images + share * eps, 0, 1)

  class Shift:
    def __init__(self, share):
      self.share = share

    def __call__(self, logits_fn, images, labels, *, eps):
      return np.clip(images + self.share * eps, 0, 1)

  images, labels = data(model, 6)
  for number, make in enumerate(
    (
      lambda share: functools.partial(shift, share=share),
      lambda share: lambda *args, eps: shift(*args, eps=eps, share=share),
      Shift,
      lambda share: functools.partial(lambda w, *args, eps: args[1] + w * eps, np.float32(share)),
    )
  ):
    options = dict(radii=[0.05], output_dir=tmp_path / str(number))
    made = lambda share: [attacks.Attack('mine', make(share))]  # noqa: B023, E731
    first = run(model, images, labels, attacks=made(1.0), **options)
    assert run(model, images, labels, attacks=made(1.0), **options).rows == first.rows
    with pytest.raises(UserError, match='other settings: attacks'):
      run(model, images, labels, attacks=made(-1.0), **options)


def test_no_place_to_write(model, tmp_path):
  images, labels = data(model, 4)
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write to'):
    run(model, images, labels, attacks=[exact(model)], output_dir=tmp_path / 'file' / 'deeper')


def test_minimum_norm_attack_runs_once_and_gives_a_curve(model):
  images, _ = data(model, 15)
  images = 0.25 + images / 2  # far from 0 and 1, where the distance has no closed form
  labels = np.asarray(model(jnp.asarray(images))).argmax(axis=1)
  labels[:2] = (labels[:2] + 1) % CLASSES
  weights = np.asarray(model.args[0], np.float64)
  logits = images.reshape(15, -1).astype(np.float64) @ weights
  calls = []

  def nearest(logits_fn, images, labels, *, norm):
    calls.append(norm)
    adv = images.copy()
    for row, image in enumerate(images):
      away = []
      for other in set(range(CLASSES)) - {int(labels[row])}:
        w = weights[:, other] - weights[:, labels[row]]
        gap = -(image.reshape(-1) @ w)
        away.append((gap / np.linalg.norm(w), 1.01 * gap * w / (w @ w)))
      adv[row] = np.clip(image + min(away, key=lambda a: a[0])[1].reshape(SHAPE), 0, 1)
    return adv

  attack = attacks.Attack('nearest', nearest, minimum_norm=True)
  found = run(model, images, labels, attacks=[attack], norm='l2', radii=[0.05, 0.5], batch_size=8)
  assert calls == ['l2', 'l2']  # two batches, once for both radii
  gaps = []
  for i in range(2, 15):
    others = [o for o in range(CLASSES) if o != labels[i]]
    w = weights[:, others] - weights[:, [labels[i]]]
    gaps.append(((logits[i, labels[i]] - logits[i, others]) / np.linalg.norm(w, axis=0)).min())
  for row in found.rows:
    assert row.robust_accuracy.value == np.sum(np.array(gaps) * 1.01 > row.eps) / 15
  grid = np.linspace(0, 1, 7)
  curve = found.curve('nearest', 'l2', grid)
  np.testing.assert_allclose(curve, [(np.array(gaps) * 1.01 > e).sum() / 15 for e in grid])
  with pytest.raises(UserError, match='no minimum-norm attack'):
    found.curve('pgd', 'l2', grid)


def test_batches_of_bytes_with_filler(model):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (8, *SHAPE), np.uint8)
  labels = np.asarray(model(jnp.asarray(pixels, jnp.float32) / 255)).argmax(axis=1)
  mask = np.arange(4) < 3
  batches = [
    {'image': pixels[:4], 'label': labels[:4]},
    {'image': pixels[4:], 'label': labels[4:], 'mask': mask},
  ]
  found = run(model, batches, attacks=[exact(model)], radii=[0.01], batch_size=4)
  direct = run(
    model,
    np.float32(pixels[:7] / np.float32(255)),
    labels[:7],
    attacks=[exact(model)],
    radii=[0.01],
  )
  assert found.rows == direct.rows and found.rows[0].images == 7
  pairs = run(model, [(pixels[:4], labels[:4])], attacks=[exact(model)], radii=[0.01], batch_size=4)
  assert pairs.rows[0].images == 4


def test_targets_are_to_be_reached(model):
  images, labels = data(model, 6)
  targets = (labels + 1) % CLASSES
  given = []

  def there(logits_fn, images, labels, *, targets):
    given.append(targets)
    return np.where((np.arange(len(images)) % 2)[:, None, None, None], images, 1 - images)

  threat = attacks.Threat('linf', 1.0, targeted=True)
  options = dict(
    key=jax.random.key(0), threats=threat, check_health=False, batch_size=4, pictures=0
  )
  attack = attacks.Attack('there', there)
  found = attacks.evaluate(model, images, labels, attacks=[attack], targets=targets, **options)
  flipped = np.asarray(model(jnp.asarray(1 - images))).argmax(axis=1)
  records = found.records[attacks.RunName('there', 'linf', 1.0)]
  for i in range(6):
    even = i % 4 % 2 == 0
    assert records[i].success == (even and flipped[i] == targets[i])
  assert all((t != np.asarray(labels[:1])).any() for t in given)
  with pytest.raises(UserError, match='needs targets'):
    attacks.evaluate(model, images, labels, attacks=[attack], **options)


def test_files_of_an_evaluation(model, tmp_path):
  images, labels = data(model, 6)
  names = ('apple', 'boat', 'car', 'dog')
  found = run(
    model,
    images,
    labels,
    attacks=[exact(model)],
    output_dir=tmp_path,
    pictures=3,
    class_names=names,
    check_health=True,
    batch_size=6,
  )
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['rows'][2]['robust_accuracy'] == list(found.rows[2].robust_accuracy)
  assert [check['name'] for check in summary['health']] == list(attacks.CHECKS)
  assert found.report() == (tmp_path / 'summary.md').read_text()
  drawn = sorted(tmp_path.glob('pictures/*.png'))
  assert len(drawn) > 1 and drawn[0].name == 'curve_linf.png'
  for path in drawn:
    with Image.open(path) as image:
      assert image.size[1] > 300
  line = json.loads((tmp_path / RESULTS).read_text().splitlines()[1])
  needed = {'case', 'image', 'clean', 'adversarial', 'loss', 'distance', 'queries', 'eps', 'seed'}
  assert needed <= set(line) and line['seed'] == '0000000000000003'


def test_only_leaves_out_the_other_kind(model):
  images, labels = data(model, 4)
  black = attacks.Attack('black', Calls(model.args[0]), black_box=True)
  found = run(model, images, labels, attacks=[exact(model), black], only='black_box')
  assert {row.attack for row in found.rows} == {'black'}
  with pytest.raises(UserError, match='no white_box attack among black'):
    run(model, images, labels, attacks=[black], only='white_box')


BAD = {
  'no images': (
    dict(images=np.zeros((0, *SHAPE), np.float32), labels=np.zeros(0, int)),
    'no images',
  ),
  'label': (dict(labels=np.full(4, CLASSES)), 'labels are from 0 to 3'),
  'labels': (dict(labels=np.zeros(3, int)), r'labels are \(4,\)'),
  'float labels': (dict(labels=np.zeros(4)), 'labels are integers'),
  'range': (dict(images=np.full((4, *SHAPE), 1.5, np.float32)), r'in \[0, 1\]'),
  'nan': (dict(images=np.full((4, *SHAPE), np.nan, np.float32)), r'in \[0, 1\]'),
  'rank': (dict(images=np.zeros((4, 6, 6), np.float32)), r'images are \(B, H, W, C\)'),
  'no labels': (dict(labels=None), 'give labels'),
  'same index': (dict(indices=[1, 2, 2, 3]), 'same index'),
  'threats': (dict(threats=[]), 'threats are'),
  'infinite': (dict(threats=attacks.Threat('l2', np.inf)), 'finite radii'),
  'norm': (dict(threats=attacks.Threat('l1', 1.0)), 'has no norm'),
  'targets': (dict(targets=np.zeros(4, int)), 'not targeted'),
  'name': (dict(attacks=['nonsense']), 'unknown attack'),
  'twice': (dict(attacks=['pgd', 'pgd']), 'two attacks'),
  'none': (dict(attacks=[]), 'no attacks'),
  'only': (dict(only='grey'), 'only is'),
  'batch': (dict(batch_size=0), 'batch_size'),
  'confidence': (dict(confidence=1.5), 'confidence'),
  'key': (dict(key=0), 'key'),
  'save': (dict(save_images=True), 'needs an output_dir'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_one_clear_error(model, name):
  images, labels = data(model, 4)
  given = dict(images=images, labels=labels, threats=attacks.Threat('linf', 0.1))
  given |= dict(key=jax.random.key(0), attacks=[exact(model)], check_health=False)
  changes, message = BAD[name]
  given |= changes
  with pytest.raises(UserError, match=message) as caught:
    attacks.evaluate(model, given.pop('images'), given.pop('labels'), **given)
  assert '\n' not in str(caught.value)


def test_an_attack_that_gives_something_else_is_named(model):
  images, labels = data(model, 4)
  attack = attacks.Attack('short', lambda logits_fn, images, labels: images[:2])
  with pytest.raises(UserError, match='the attack short gave'):
    run(model, images, labels, attacks=[attack])
  with pytest.raises(UserError, match='label of an attack'):
    attacks.Attack('a/b', print)


@pytest.mark.parametrize(
  ('name', 'options', 'most'),
  [('fgsm', {}, 1), ('pgd', {'steps': 4}, 5), ('square', {'n_queries': 6}, 7)],
)
def test_queries_are_counted(model, name, options, most):
  images, labels = data(model, 6, wrong=1)
  attack = attacks.named_attack(name, **options)
  found = run(model, images, labels, attacks=[attack], radii=[1e-6, 0.05])
  none, some = (
    [r.queries for r in found.records[attacks.RunName(name, 'linf', eps)].values()]
    for eps in (1e-6, 0.05)
  )
  assert none == [0] + 5 * [most]  # nothing to be found: the whole budget
  assert all(0 < queries <= most for queries in some[1:]) and some[0] == 0
  assert name == 'fgsm' or min(some[1:]) < most  # who is fooled is left alone


def test_every_named_attack_exists():
  for name in attacks.list_attacks():
    attack = attacks.named_attack(name)
    assert callable(attack.function) and attack.label == name


# An attack whose success at each radius is written down: radius in percent to images fooled.
FOOLED = {5: {0}, 10: {1}, 20: {0, 2}, 30: set()}


def by_table(logits_fn, images, labels, *, eps):
  """Fools the images that `FOOLED` says, told apart by their first pixel."""
  adv = np.array(images)
  for image in adv:
    if round(float(image[0, 0, 0]) * 100) in FOOLED[round(eps * 100)]:
      image[0, 0, 1] += 0.04
  return adv


def first_pixel_model(images):
  moved = images[:, 0, 0, 1] - 0.5
  return jnp.stack([0.02 - moved, 0 * moved], axis=1)


@given(st.permutations([0.05, 0.1, 0.2, 0.3]), st.integers(1, 3))
def test_the_order_of_radii_does_not_matter(order, first):
  """Added one after another to stored results or at once; and no radius makes a model robust."""
  images = np.full((4, 1, 1, 2), 0.5, np.float32)
  images[:, 0, 0, 0] = np.arange(4) / 100
  options = dict(
    attacks=[attacks.Attack('by_table', by_table)], key=KEY, check_health=False, pictures=0
  )

  def at(radii, directory):
    grid = attacks.epsilon_grid('linf', radii)
    labels = np.zeros(4, np.int32)
    return attacks.evaluate(
      first_pixel_model, images, labels, threats=grid, output_dir=directory, **options
    ).rows

  with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
    at(order[:first], one)
    for radius in order[first:]:
      at([radius], one)
    found, at_once = at(order, one), at(order, other)
  assert found == at_once
  robust = [row.robust_accuracy.value for row in found]
  assert robust == [0.75, 0.5, 0.25, 0.25]


def test_a_model_is_the_same_whatever_is_probed(tmp_path):
  """`fingerprint` took as many logits as the batch had images."""
  model = linear_model()
  images, labels = data(model, 6)
  options = dict(
    threats=attacks.Threat('linf', 0.1), key=KEY, attacks=['fgsm'], output_dir=tmp_path
  )
  for count, size in [(2, 50), (6, 50), (6, 3), (1, 1)]:
    found = attacks.evaluate(
      model, images[:count], labels[:count], batch_size=size, check_health=False, **options
    )
    assert found.rows[0].images == count


def test_few_classes_take_the_default_attacks():
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(108, 2)), jnp.float32)
  model = Partial(linear, weights)
  images = np.random.default_rng(1).random((3, *SHAPE), np.float32)
  labels = np.asarray(model(jnp.asarray(images))).argmax(axis=1).astype(np.int32)
  few = [attacks.named_attack(n, steps=3) for n in ('apgd_ce', 'apgd_t', 'apgd_dlr')]
  found = attacks.evaluate(
    model,
    images,
    labels,
    threats=attacks.Threat('linf', '25.5/255'),
    key=KEY,
    attacks=few,
    check_health=False,
  )
  assert len(found.rows) == 4
