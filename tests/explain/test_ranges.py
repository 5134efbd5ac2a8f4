"""Maps, fills, boxes and pictures beyond their range are refused, whoever is given them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import UserError, explain
from rest_jax.explain import metrics

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(2, 6, 8, 3)).astype(np.float32)
MAPS = RNG.uniform(size=(2, 6, 8)).astype(np.float32)
WEIGHTS = RNG.normal(size=(6 * 8 * 3, 4)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 4)).astype(np.float32)
UNIT = {
  'drop_increase': lambda maps: explain.drop_increase(model, IMAGES, maps),
  'structural_similarity': lambda maps: explain.structural_similarity(maps, MAPS),
}
FILLED = {
  **{
    name: lambda fill, name=name, option=option, more=more: explain.METHODS[name].fn(
      model, IMAGES, **{option: fill}, **more
    )
    for name, option, more in (
      ('occlusion', 'fill', {}),
      ('rise', 'fill', {'masks': 2}),
      ('integrated_gradients', 'baseline', {'steps': 2}),
      ('smooth_integrated_gradients', 'baseline', {'samples': 2}),
    )
  },
  'drop_increase': lambda fill: explain.drop_increase(model, IMAGES, MAPS, fill=fill),
  'insertion': lambda fill: explain.insertion_deletion(model, IMAGES, MAPS, insertion_fill=fill),
  'deletion': lambda fill: explain.insertion_deletion(model, IMAGES, MAPS, deletion_fill=fill),
  'fill_images': lambda fill: metrics.fill_images(model, jnp.asarray(IMAGES), fill),
}


def model(x):
  return x.reshape(len(x), -1) @ WEIGHTS


def test_every_option_of_a_fill_is_in_the_table():
  named = {
    (name, option)
    for name, method in explain.METHODS.items()
    for option in method.options()
    if option in ('fill', 'baseline')
  }
  assert {name for name, _ in named} <= set(FILLED)


@pytest.mark.parametrize('name', UNIT)
@pytest.mark.parametrize('maps', [255 * MAPS, MAPS - 0.5, np.where(MAPS > 0.5, np.nan, MAPS)])
def test_maps_that_are_multiplied_by_are_in_range(name, maps):
  with pytest.raises(UserError, match=r'maps are in \[0, 1\]|map 0 is not finite'):
    UNIT[name](maps)
  UNIT[name](MAPS)
  UNIT[name](MAPS / MAPS.max() * np.float32(1 + 2e-7))  # rounding


@pytest.mark.parametrize('name', FILLED)
@pytest.mark.parametrize('fill', [[124, 116, 104], [-1.0, 0.0, 0.0], np.float32('nan')])
def test_fills_are_in_range(name, fill):
  with pytest.raises(UserError, match=r'fills are in \[0, 1\], got'):
    FILLED[name](np.asarray(fill))


@pytest.mark.parametrize('name', ['occlusion', 'drop_increase'])
def test_fills_under_jit_are_taken_as_they_are(name):
  fill = jnp.array([0.1, 0.2, 0.3])
  jax.jit(FILLED[name])(fill)
  jax.tree.map(np.asarray, FILLED[name](fill))


def test_boxes_in_pixels_are_refused():
  for measure in (explain.pointing_game, explain.energy_share):
    with pytest.raises(UserError, match='divide pixels by the height and the width'):
      measure(MAPS, np.array([[0.0, 0, 6, 8]] * 2))
  assert metrics.box_masks(np.array([[-0.1, 0, 1.2, 1]]), (2, 2)).all()


def test_pictures_to_lay_maps_over_are_in_range(tmp_path):
  found = explain.explain(model, IMAGES, 'occlusion')
  with pytest.raises(UserError, match='divide pixels of 0 to 255 by 255'):
    found.save(tmp_path / 'a.png', 255 * IMAGES)
  assert len(found.save(tmp_path / 'a.png', IMAGES)) == 2
