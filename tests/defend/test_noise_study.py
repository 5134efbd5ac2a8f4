"""The noise-only study on models whose answers can be worked out, and its tables and figures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import Partial
from PIL import Image
from seen_devices import devices

from rest_jax.defend import figures
from rest_jax.defend.denoise import Denoiser, denoiser
from rest_jax.defend.features import at_layer
from rest_jax.defend.study import noise_study
from rest_jax.defend.study_results import NoiseStudy
from rest_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('alone')
SIDE = 8
STRIPES = np.where(np.arange(SIDE) % 2, 1.0, -1.0).astype(np.float32)[None, None, :, None]


def by_brightness(images):
  """Two classes: the mean colour under or over one half."""
  brightness = images.mean((1, 2, 3))
  return jnp.stack([0.5 - brightness, brightness - 0.5], axis=1)


def by_stripes(weight, images):
  """Two classes: the sign of the finest vertical stripes, and a little brightness."""
  score = (images * STRIPES).mean((1, 2, 3)) + weight * (images.mean((1, 2, 3)) - 0.5)
  return jnp.stack([-score, score], axis=1)


@pytest.fixture(scope='module')
def attacked():
  """Ten images, dark (class 0) or bright (1), and two perturbations that turn their class.

  The first is an even change of brightness, the second fine stripes; the last image is left alone.
  """
  labels = np.arange(10) % 2
  noise = np.random.default_rng(0).normal(0, 0.01, (10, SIDE, SIDE, 3)).astype(np.float32)
  images = (0.5 + np.where(labels, 0.1, -0.1)[:, None, None, None] + noise).astype(np.float32)
  away = np.where(labels, -1.0, 1.0)[:, None, None, None].astype(np.float32)
  away[-1] = 0
  even = images + 0.2 * away * np.ones_like(images)
  fine = images + 0.1 * away * STRIPES
  return images, labels, even.astype(np.float32), fine.astype(np.float32)


@pytest.mark.parametrize('value', [jnp.nan, jnp.inf])
def test_logits_that_are_not_numbers_are_never_right(attacked, value):
  images, labels, even, _ = attacked

  def broken(x):
    # Only what the attack made is broken; class 0 would be the first of equals.
    far = jnp.abs(x.mean((1, 2, 3)) - 0.5)[:, None] > 0.15
    return jnp.where(far, value, by_brightness(x))

  study = noise_study(broken, images, labels, even + 0.3 * np.sign(even - images), {}, bands=2)
  (model,) = study.models
  assert model.clean.value == 1 and model.attacked.value == 0.1  # the image that was left alone
  with pytest.raises(
    UserError, match=r'[12]0 logits of model are not finite on clean images, on 10 of'
  ):
    noise_study(lambda x: by_brightness(x) * value, images, labels, even, {}, bands=2)


def test_the_numbers_of_a_study(attacked):
  images, labels, even, fine = attacked
  models = {'brightness': by_brightness, 'stripes': Partial(by_stripes, jnp.float32(0.5))}
  adv = {'brightness': even, 'stripes': fine}
  calls = []
  study = noise_study(
    models,
    images,
    labels,
    adv,
    {'blur': denoiser('gaussian', sigma=2.0)},
    strengths=(0.0, 1.0),
    bands=4,
    transform='fft',  # of which stripes are one frequency
    batch_size=4,
    progress=lambda done, count: calls.append((done, count)),
  )
  assert calls == [(i, 20) for i in range(1, 21)]
  for model in study.models:
    assert (model.images, model.clean.value, model.attacked.value) == (10, 1.0, 0.1), model

  rows = {(row.model, row.strength): row for row in study.denoisers}
  for model in models:
    row = rows[model, 0.0]
    assert (row.denoiser, row.family) == ('blur', 'spatial')
    assert (row.alone.removed, row.alone.removed_total, row.alone.accuracy.value) == (0, 0, 0.1)
  for share in (0.25, 0.5, 0.9):
    for model in models:
      row = rows[model, share]
      assert (row.denoiser, row.family) == ('weaker', 'reference')
      assert row.alone.removed == pytest.approx(share, abs=1e-5)
      # The class is right again where less than half of the perturbation's amplitude is left.
      assert row.alone.accuracy.value == (1.0 if np.sqrt(1 - share) < 0.5 else 0.1), share
  # A blur leaves an even change as it is, and nothing of fine stripes.
  even_row, fine_row = rows['brightness', 1.0].alone, rows['stripes', 1.0].alone
  assert abs(even_row.removed) < 1e-4 and even_row.accuracy.value == 0.1
  assert fine_row.removed > 0.95 and fine_row.accuracy.value == 1.0
  assert fine_row.removed == pytest.approx(fine_row.removed_total, abs=1e-5)
  assert fine_row.accuracy.low == pytest.approx(0.025 ** (1 / 10))

  bands = {(row.model, row.band): row for row in study.bands}
  assert bands['brightness', 0].share == pytest.approx(1, abs=1e-4)
  assert [bands['brightness', k].kept.value for k in range(4)] == [0.1, 1.0, 1.0, 1.0]
  assert [bands['brightness', k].removed.value for k in range(4)] == [1.0, 0.1, 0.1, 0.1]
  shares = [bands['stripes', k].share for k in range(4)]
  np.testing.assert_allclose(shares, [0, 0, 1, 0], atol=1e-4)  # a radius of 1 / sqrt 2


def test_batches_and_keys_do_not_change_the_result(attacked):
  images, labels, even, _ = attacked
  results = [
    noise_study(
      by_brightness,
      images,
      labels,
      even,
      ['resize_pad', 'median'],
      strengths=[0.7],
      bands=0,
      context=True,
      key=jax.random.key(5),
      batch_size=size,
    )
    for size in (4, 100)
  ]
  for one, other in zip(*(study.rows() for study in results), strict=True):
    assert one == pytest.approx(other, abs=1e-5)


def test_one_device_measures_what_four_do(attacked):
  """Seven images at a time are eight of four devices."""
  images, labels, even, _ = attacked
  denoisers = {'blur': denoiser('gaussian', sigma=2.0)}
  options = dict(bands=2, batch_size=7)
  with devices(4):
    four = noise_study(by_brightness, images, labels, even, denoisers, **options)
  one = noise_study(by_brightness, images, labels, even, denoisers, **options)
  for found, wanted in zip(
    four.rows() + four.band_rows(), one.rows() + one.band_rows(), strict=True
  ):
    assert found == pytest.approx(wanted, abs=1e-5, nan_ok=True)


def test_context_is_the_denoiser_in_its_place(attacked):
  images, labels, even, _ = attacked
  one = denoiser('median', 1.0)
  study = noise_study(
    by_brightness, images, labels, even, one, strengths=[1.0], bands=0, context=True
  )
  row = study.denoisers[-1]
  clean, noisy = np.asarray(one(jnp.asarray(images))), np.asarray(one(jnp.asarray(even)))
  energy = lambda x: np.sum(x.astype(np.float64) ** 2, axis=(1, 2, 3))[:-1]  # noqa: E731
  expected = np.mean(1 - energy(noisy - clean) / energy(even - images))
  assert row.in_place.removed == pytest.approx(expected, abs=1e-5)
  right = lambda x: np.mean(np.argmax(by_brightness(x), 1) == labels)  # noqa: E731
  assert row.in_place.accuracy.value == right(images + noisy - clean)
  assert (row.clean.value, row.defended.value) == (right(clean), right(noisy))


class Net(nn.Module):
  """A convolution and a mean: class 1 where the mean of the map is above a half."""

  @nn.compact
  def __call__(self, x):
    kernel = lambda *_: jnp.zeros((3, 3, 3, 1)).at[1, 1].set(1 / 3)  # noqa: E731
    x = nn.Conv(1, (3, 3), use_bias=False, kernel_init=kernel, name='stage1')(x)
    score = x.mean((1, 2, 3)) - 0.5
    return jnp.stack([-score, score], axis=1)


def test_feature_denoisers(attacked):
  images, labels, even, _ = attacked
  module = Net()
  variables = module.init(jax.random.key(0), images[:1])

  def model(x):
    return module.apply(variables, x)

  study = noise_study(
    model, images, labels, even, ['mean_3x3@stage1'], strengths=[1.0], bands=0, context=True
  )
  row = study.denoisers[-1]
  assert (row.denoiser, row.family) == ('mean_3x3@stage1', 'feature')
  # An even change of the map is what the mean leaves as it is.
  assert row.alone.removed == pytest.approx(0, abs=1e-4) and row.alone.accuracy.value == 0.1
  assert row.in_place.removed == pytest.approx(0, abs=1e-4)
  assert (row.clean.value, row.defended.value) == (1.0, 0.1)
  with pytest.raises(UserError, match="no layer 'stage9'"):
    noise_study(model, images, labels, even, at_layer('non_local', 'stage9'), strengths=[1.0])


def test_each_denoiser_compiles_once(attacked):
  images, labels, even, _ = attacked
  traces = []

  def model(x):
    traces.append(x.shape)
    return by_brightness(x)

  noise_study(model, images, labels, even, ['gaussian', 'pca'], strengths=(0.3, 0.6), bands=2)
  assert len(traces) <= 3  # two looks at the shapes of all and of a batch, one compilation


def test_a_study_that_was_stopped_goes_on_and_nothing_is_measured_twice(attacked, tmp_path):
  images, labels, even, _ = attacked

  def study(model, place, progress=None):
    key = jax.random.key(3)
    options = dict(strengths=(0.4, 0.8), bands=3, batch_size=4, key=key, progress=progress)
    return noise_study(model, images, labels, even, ['bit_depth'], output_dir=place, **options)

  def stopped(done, count):
    if done == 5:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    study(by_brightness, tmp_path, stopped)
  file = tmp_path / 'results.jsonl'
  before = file.read_text()
  file.write_text(before + '{"case": "model: band 0", "ima')  # as a kill leaves it
  calls = []
  resumed = study(by_brightness, tmp_path, lambda done, count: calls.append((done, count)))
  assert calls == [(i, 9) for i in range(1, 10)]
  assert resumed == study(by_brightness, None)
  lines = file.read_text().splitlines()
  assert file.read_text().startswith(before) and len(lines) == 1 + 10 * 10  # undefended too
  other = study(Partial(by_stripes, jnp.float32(0.5)), tmp_path)  # gives way
  assert other.models[0].clean.value == 1 and len(file.read_text().splitlines()) == len(lines)


def test_a_denoiser_of_other_code_is_measured_anew(attacked, tmp_path):
  images, labels, even, _ = attacked

  def study(change):
    own = Denoiser('own', jnp.float32(1), *map(Partial, (_same, change, _back)))
    options = dict(strengths=(1.0,), bands=0, context=True, output_dir=tmp_path)
    return noise_study(by_brightness, images, labels, even, [own], **options).denoisers[-1]

  same = study(lambda z, strength: z)
  undone = study(lambda z, strength: 1 - z)
  assert (same.clean.value, undone.clean.value) == (1, 0)
  assert study(lambda z, strength: 1 - z) == undone


def _same(images):
  return images


def _back(z, shape):
  return z


def test_tables_json_and_conclusion(attacked):
  images, labels, even, fine = attacked
  models = {'brightness': by_brightness, 'stripes': Partial(by_stripes, jnp.float32(0.5))}
  study = noise_study(
    models,
    images,
    labels,
    {'brightness': even, 'stripes': fine},
    ['gaussian'],
    strengths=(0.5, 1.0),
    bands=2,
  )
  again = NoiseStudy.from_dict(json.loads(json.dumps(study.to_dict())))
  assert again == study
  rows = study.rows()
  assert len(rows) == 12 and {'model', 'strength', 'accuracy_low', 'energy_removed'} <= set(rows[0])
  assert json.dumps(rows) and json.dumps(study.band_rows())
  table = study.markdown()
  assert '**stripes**, 10 images: accuracy 100 % (69-100) on clean images, 10 % (0.3-45)' in table
  assert table.count('| gaussian | spatial |') == 4 and '| stripes | 0.50-1.00 |' in table

  brightness, stripes = study.conclusion().split('\n\n')
  assert 'No setting removed over half' in brightness
  assert 'None of them left accuracy far under' in stripes
  assert (
    NoiseStudy.from_dict(study.to_dict() | {'denoisers': [_far(study)]})
    .conclusion()
    .endswith(
      'gaussian at strength 1: it removed 80 % of the energy, and the accuracy was 20 % (15-30).'
    )
  )


def _far(study):
  row = study.to_dict()['denoisers'][5]
  return row | {
    'alone': {'accuracy': (0.2, 0.15, 0.3), 'removed': 0.8, 'removed_total': 0.8},
    'model': 'stripes',
  }


def test_figures_are_pictures(attacked, tmp_path):
  images, labels, even, fine = attacked
  study = noise_study(
    {'one': by_brightness, 'two': by_brightness},
    images,
    labels,
    {'one': even, 'two': fine},
    ['gaussian', 'median'],
    strengths=(0.5, 1.0),
    bands=3,
  )
  for draw in (figures.draw_study, figures.draw_bands):
    draw(study, tmp_path / f'{draw.__name__}.png')
    picture = np.asarray(Image.open(tmp_path / f'{draw.__name__}.png').convert('RGB'))
    assert min(picture.shape[:2]) > 200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 30
  with pytest.raises(UserError, match='cannot write to'):
    figures.draw_study(study, '/proc/nowhere/figure.png')


def test_bad_input_is_one_line(attacked):
  images, labels, even, _ = attacked

  def run(**changes):
    fields = dict(models=by_brightness, images=images, labels=labels, adv=even)
    return noise_study(**fields | dict(denoisers=['gaussian']) | changes)

  for changes, match in [
    (dict(denoisers=['gausian']), "no denoiser 'gausian'; did you mean gaussian"),
    (dict(denoisers=['gaussian', 'gaussian']), "two denoisers are called 'gaussian'"),
    (dict(denoisers=[3]), 'a denoiser is a name'),
    (dict(denoisers=['non_locl@stage1']), "no feature denoiser 'non_locl'"),
    (dict(strengths=(0.5, 1.5)), 'from 0 .* to 1, not 1.5'),
    (dict(strengths=()), 'one or more numbers'),
    (dict(adv=even[:3]), 'adv is floats like images'),
    (dict(adv={'other': even}), r"adv has images of \['other'\], models are \['model'\]"),
    (dict(labels=labels + 1), 'labels'),
    (dict(images=images[:0], adv=even[:0], labels=labels[:0]), 'one image or more'),
    (dict(transform='wavelet'), "transform is 'dct' or 'fft'"),
    (dict(batch_size=0), 'batch_size'),
  ]:
    with pytest.raises(UserError, match=match) as error:
      run(**changes)
    assert '\n' not in str(error.value)
