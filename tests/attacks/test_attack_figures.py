"""Pictures of attacked images."""

import numpy as np
import pytest
from PIL import Image

from rest_jax.attacks.figures import draw_attacks, draw_curves, enlarge
from rest_jax.attacks.record import Record, Row, RunName
from rest_jax.errors import UserError
from rest_jax.evaluation.intervals import accuracy_interval


def test_the_largest_change_becomes_black_or_white():
  perturbation = np.zeros((2, 2, 2, 3), np.float32)
  perturbation[0, 0, 0, 0], perturbation[0, 1, 1, 2] = 0.02, -0.01
  shown, factor = enlarge(perturbation)
  np.testing.assert_allclose(factor, [25.0, 1.0], rtol=1e-6)
  np.testing.assert_allclose([shown[0, 0, 0, 0], shown[0, 1, 1, 2]], [1.0, 0.25], rtol=1e-6)
  assert (shown[1] == 0.5).all()


def pixels(path):
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB'))


@pytest.mark.parametrize('channels', [1, 3])
def test_a_column_an_image(tmp_path, channels):
  images = np.full((3, 8, 8, channels), 0.25, np.float32)
  adversarial = images.copy()
  adversarial[:, 4, 4] = 0.75
  path = tmp_path / 'deeper' / 'p.png'
  names = ['a $name', 'another of many letters', '3']
  draw_attacks(path, images, adversarial, [0, 1, 2], [1, 2, 7], class_names=names, title='t')
  drawn = pixels(path)
  one = tmp_path / 'one.png'
  draw_attacks(one, images[:1], adversarial[:1], [0], [1])
  assert drawn.shape[1] > 2 * pixels(one).shape[1]
  # All three kinds of row are there: the image, grey, and the changed pixel.
  for value in (0.25, 0.5, 0.75):
    near = np.abs(drawn.astype(int) - round(255 * value)).max(axis=-1) <= 1
    assert near.sum() > 20
  assert [p.name for p in path.parent.iterdir()] == ['p.png']


def test_captions_are_the_class_names(tmp_path):
  images = np.zeros((1, 4, 4, 3), np.float32)
  paths = [tmp_path / f'{i}.png' for i in range(3)]
  draw_attacks(paths[0], images, images, [0], [1], class_names=['cat', 'dog'])
  draw_attacks(paths[1], images, images, [0], [1], class_names=['cat', 'cow'])
  draw_attacks(paths[2], images, images, [0], [1], class_names=['cat', 'dog'])
  first, second, third = map(pixels, paths)
  assert first.shape == second.shape and (first != second).any()
  np.testing.assert_array_equal(first, third)


@pytest.mark.parametrize(
  ('shape', 'other', 'classes', 'message'),
  [
    ((2, 4, 4, 3), (2, 4, 5, 3), [0, 1], 'one shape'),
    ((0, 4, 4, 3), (0, 4, 4, 3), [], 'one shape'),
    ((4, 4, 3), (4, 4, 3), [0], 'one shape'),
    ((1, 4, 4, 5), (1, 4, 4, 5), [0], '1 or 3 channels'),
    ((1, 4, 4, 3), (1, 4, 4, 3), [0, 1], 'as many predictions'),
  ],
)
def test_what_is_no_picture(tmp_path, shape, other, classes, message):
  with pytest.raises(UserError, match=message):
    draw_attacks(tmp_path / 'p.png', np.zeros(shape), np.zeros(other), classes, classes)
  assert not list(tmp_path.iterdir())


def curve_of(tmp_path, rows, records):
  path = tmp_path / 'curve.png'
  return draw_curves(path, rows, records, 'linf') and pixels(path)


def test_curves_show_what_there_is(tmp_path):
  def row(attack, eps, robust):
    return Row(attack, 'linf', eps, 20, accuracy_interval(18, 20), robust, None, None)

  held, lost = accuracy_interval(10, 20), accuracy_interval(2, 20)
  several = [row('pgd', 0.1, held), row('pgd', 0.2, lost)]
  drawn = curve_of(tmp_path, several, {})
  other = curve_of(tmp_path, [row('pgd', 0.1, held), row('pgd', 0.2, held)], {})
  assert drawn.shape == other.shape and (drawn != other).any()
  # One radius is no curve, nor is radius 0, nor another norm.
  assert not curve_of(tmp_path, several[:1], {})
  assert not curve_of(tmp_path, [row('pgd', 0.0, held)], {})
  assert not draw_curves(tmp_path / 'none.png', several, {}, 'l2')
  assert [path.name for path in tmp_path.iterdir()] == ['curve.png']
  found = {i: minimum_norm_record(i) for i in range(3)}
  one = curve_of(tmp_path, [row('fab', 0.1, held)], {RunName('fab', 'linf', None): found})
  assert one is not False and one.shape == drawn.shape


def minimum_norm_record(index):
  values = dict(index=index, label=1, target=None, clean=1, adversarial=2, clean_loss=0.2, loss=3.0)
  values |= dict(distance=0.05 * index, queries=7, attack='fab', norm='linf', eps=None, seed='0')
  values |= dict(inside=True, success=True, confirmed=True, reused=None, pixels='00')
  return Record(**values)
