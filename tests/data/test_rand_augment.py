"""RandAugment against timm: arguments and pixels from its own code, chances against its rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import stats

from rest_jax.data import image_ops, rand_augment
from rest_jax.data.rand_augment import INCREASING_SET, OPERATIONS, SET, WEIGHTS, Step, parse
from rest_jax.errors import UserError

FILL = (124, 116, 104)
POLICY = 'rand-m9-mstd0.5-inc1'


@pytest.fixture(scope='module')
def timm():
  """What timm 1.0.31 gives; written by tests/golden/make_rand_augment_timm.py."""
  path = Path(__file__).parents[1] / 'golden' / 'rand_augment_timm.npz'
  with np.load(path) as file:
    return dict(file)


def timm_cases(timm):
  return [(str(timm['names'][n]), *rest) for n, *rest in timm['cases'].tolist()]


def test_the_reference_covers_every_operation_magnitude_and_sign(timm):
  cases = timm_cases(timm)
  assert {name for name, *_ in cases} == set(OPERATIONS) == {*SET, *INCREASING_SET}
  for name, operation in OPERATIONS.items():
    levels = {level for n, level, *_ in cases if n == name}
    assert levels == (set(range(11)) if operation.argument else {10})
  assert len(timm['patches']) == 20


def test_a_magnitude_means_what_it_means_to_timm(timm):
  for (name, level, negative, _), argument in zip(timm_cases(timm), timm['arguments'], strict=True):
    own = OPERATIONS[name].argument
    if own is None:
      assert np.isnan(argument)
    else:
      assert own(level / 10, bool(negative)) == argument, (name, level)


def test_every_operation_is_within_one_grey_level_of_timm(timm):
  patches = [Image.fromarray(patch) for patch in timm['patches']]
  worst: dict[str, int] = {}
  for case, places, wanted in zip(timm_cases(timm), timm['places'], timm['pixels'], strict=True):
    name, level, negative, bicubic = case
    argument = OPERATIONS[name].argument
    value = argument(level / 10, bool(negative)) if argument else None
    step = Step(name, value, bool(bicubic))
    for patch, pixels in zip(patches, wanted, strict=True):
      own = np.asarray(rand_augment.apply(patch, [step], FILL)).reshape(-1)[places]
      off = int(np.abs(own.astype(int) - pixels).max())
      worst[name] = max(worst.get(name, 0), off)
  assert {name: off for name, off in worst.items() if off > 1} == {}
  # Only what is computed another way than in Pillow may differ at all.
  assert {name for name, off in worst.items() if off} <= set(rand_augment._MOVING)


@pytest.mark.parametrize('size', [(1, 1), (5, 3), (3, 200)])
@pytest.mark.parametrize('resample', [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_shifts_are_pillows_affine_transform_at_any_size(size, resample):
  rng = np.random.default_rng(7)
  picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
  width, height = size
  for factor in (-1.5, -0.3, -0.25, 0.0, 0.11, 0.45, 1.0):
    matrices = {
      image_ops.shear_x: (1, factor, 0, 0, 1, 0),
      image_ops.shear_y: (1, 0, 0, factor, 1, 0),
      image_ops.translate_x: (1, 0, factor * width, 0, 1, 0),
      image_ops.translate_y: (1, 0, 0, 0, 1, factor * height),
    }
    for operation, matrix in matrices.items():
      own = operation(picture, factor, FILL, resample)
      wanted = picture.transform(
        size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=FILL
      )
      assert np.abs(np.asarray(own, int) - np.asarray(wanted, int)).max() <= 1


def test_a_flat_channel_survives_auto_contrast():
  pixels = np.full((4, 4, 3), 77, np.uint8)
  pixels[0, 0, 1] = 80
  result = np.asarray(image_ops.auto_contrast(Image.fromarray(pixels)))
  assert (result[..., 0] == 77).all() and set(result[..., 1].flat) == {0, 255}


def test_operations_are_chosen_as_often_as_in_timm():
  policy, rng, draws = parse(POLICY), np.random.default_rng(0), 100_000
  counts = dict.fromkeys(INCREASING_SET, 0)
  steps = [policy.draw(rng) for _ in range(draws)]
  for step in (step for drawn in steps for step in drawn):
    counts[step.name] += 1
  applied = sum(counts.values())
  shares = np.array(list(counts.values())) / applied
  assert np.abs(shares - 1 / 15).max() < 0.01
  assert stats.chisquare(list(counts.values())).pvalue > 1e-3
  # Two are drawn with replacement, each applied with probability a half.
  assert abs(applied / (2 * draws) - 0.5) < 0.01
  lengths = np.bincount([len(drawn) for drawn in steps]) / draws
  np.testing.assert_allclose(lengths, [0.25, 0.5, 0.25], atol=0.01)
  twice = np.mean([a.name == b.name for a, b in (d for d in steps if len(d) == 2)])
  assert abs(twice - 1 / 15) < 0.01


def levels_of(policy: str, draws: int) -> np.ndarray:
  """Signed magnitudes of the rotations that a policy draws."""
  policy_, rng = parse(policy), np.random.default_rng(1)
  steps = (step for _ in range(draws) for step in policy_.draw(rng) if step.name == 'Rotate')
  return np.array([step.argument for step in steps]) / 3


def test_magnitudes_are_normal_around_m_and_cut_at_ten():
  signed = levels_of('rand-m9-mstd0.5-inc1-p1', 60_000)
  levels = np.abs(signed)
  assert len(levels) > 7000 and abs(np.mean(np.sign(signed))) < 0.05
  assert levels.max() == 10 and abs(np.mean(levels == 10) - stats.norm.sf(2)) < 0.01
  inside = levels[levels < 10]
  assert stats.kstest(inside, stats.truncnorm(-18, 2, 9, 0.5).cdf).pvalue > 1e-3


def test_more_than_hundred_is_an_even_magnitude():
  levels = np.abs(levels_of('rand-m8-mstd101-p1', 20_000))
  assert stats.kstest(levels, stats.uniform(0, 8).cdf).pvalue > 1e-3


def test_mmax_lifts_the_limit():
  assert set(np.abs(levels_of('rand-m20-mmax20-p1', 200))) == {20}
  assert set(np.abs(levels_of('rand-m20-p1', 200))) == {10}


@pytest.mark.parametrize('size', [(1, 1), (2, 5), (3, 3), (9, 150)])
def test_smoothing_is_pillows(size):
  rng = np.random.default_rng(8)
  picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
  wanted = picture.filter(ImageFilter.SMOOTH)
  np.testing.assert_array_equal(np.asarray(image_ops._smooth(picture)), np.asarray(wanted))


def test_weights_draw_without_replacement():
  policy, rng = parse('rand-m9-tweights-p1'), np.random.default_rng(4)
  drawn = [[step.name for step in policy.draw(rng)] for _ in range(3000)]
  assert all(len(set(names)) == 2 for names in drawn)
  first = np.mean([names[0] == 'Rotate' for names in drawn])
  assert abs(first - 3 / sum(WEIGHTS.values())) < 0.05
  assert set(WEIGHTS) == set(INCREASING_SET)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'random'])
def test_interpolation_is_as_asked(interpolation):
  policy, rng = parse('rand-p1'), np.random.default_rng(5)
  share = np.mean([step.bicubic for _ in range(1000) for step in policy.draw(rng, interpolation)])
  assert {'bilinear': share == 0, 'bicubic': share == 1, 'random': 0.45 < share < 0.55}[
    interpolation
  ]


def test_what_a_policy_says():
  policy = parse('rand-m7-n3-p0.25-mstd0.5-mmax8-inc1')
  assert (policy.magnitude, policy.layers, policy.prob, policy.noise, policy.limit) == (
    7, 3, 0.25, 0.5, 8,
  )  # fmt: skip
  assert policy.names == INCREASING_SET and parse('rand').names == SET
  assert (parse('rand').magnitude, parse('rand').layers, parse('rand').prob) == (10, 2, 0.5)


@pytest.mark.parametrize(
  'policy',
  ['', 'augmix-m3', 'rand-m9-x2', 'rand-m9.5', 'rand-m', 'rand-w0', 'rand-p2', 'rand-n0',
   'rand-inc2', 'rand-m9-m8', 'rand-m-9', 'rand-t3a'],
)  # fmt: skip
def test_a_bad_policy_is_refused(policy):
  with pytest.raises(UserError, match='RandAugment policy'):
    parse(policy)
