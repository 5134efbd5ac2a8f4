"""Maps laid back onto pictures, figures and the animation."""

import numpy as np
import pytest
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.explain import figures, overlays
from rest_jax.files import replacing, write_json


def random_map(side=16, seed=0):
  return np.random.default_rng(seed).random((side, side), np.float32)


def laid_back(saliency, place, size):
  """The strips put together, NaN where there is none."""
  whole = np.full((size[1], size[0]), np.nan, np.float32)
  inside = overlays.region(place, size)
  for top, values in overlays.lay_back(saliency, place, size):
    whole[top : top + len(values), inside.left : inside.right] = values
  return whole


def bilinear(saliency, place, size):
  """The same by its definition, a loop over pixels; enlargement only."""
  side = saliency.shape[0]
  out = np.full((size[1], size[0]), np.nan)
  for y in range(size[1]):
    for x in range(size[0]):
      inside = place[0] <= x + 0.5 < place[2] and place[1] <= y + 0.5 < place[3]
      if not inside:
        continue
      u = (x + 0.5 - place[0]) / (place[2] - place[0]) * side - 0.5
      v = (y + 0.5 - place[1]) / (place[3] - place[1]) * side - 0.5
      u, v = np.clip([u, v], 0, side - 1)
      i, j = min(int(v), side - 2), min(int(u), side - 2)
      a, b = v - i, u - j
      rows = saliency[i : i + 2, j : j + 2]
      out[y, x] = np.array([1 - a, a]) @ rows @ np.array([1 - b, b])
  return out


@pytest.mark.parametrize(
  ('place', 'size'),
  [((0, 0, 40, 30), (40, 30)), ((5.3, 0.0, 35.3, 30.0), (40, 30)), ((0, 9.7, 20, 29.7), (20, 41))],
)
def test_map_is_laid_back_by_its_definition(place, size):
  saliency = random_map()
  np.testing.assert_allclose(
    laid_back(saliency, place, size), bilinear(saliency, place, size), atol=1e-5
  )


def test_strips_are_seamless(monkeypatch):
  saliency, place, size = random_map(), (1.5, 2.5, 50.5, 71.5), (52, 73)
  whole = laid_back(saliency, place, size)
  monkeypatch.setattr(overlays, '_STRIP', 7)
  np.testing.assert_allclose(laid_back(saliency, place, size), whole, rtol=0, atol=1e-6)


def test_pictures_smaller_than_the_map_get_its_mean():
  saliency = random_map(16)
  small = laid_back(saliency, (0, 0, 1, 1), (1, 1))
  assert abs(small[0, 0] - saliency.mean()) < 0.05


def test_what_the_model_did_not_see_is_dark_grey_and_hatched():
  pixels = np.random.default_rng(1).integers(0, 255, (30, 50, 3), dtype=np.uint8)
  saliency = np.zeros((8, 8), np.float32)
  saliency[4, 4] = 1
  marked = np.asarray(overlays.overlay(Image.fromarray(pixels), saliency, (10, 4, 40, 30)))
  seen = np.zeros((30, 50), bool)
  seen[4:, 10:40] = True
  rest = marked[~seen].astype(int)
  assert (rest == rest[:, :1]).all()
  luminance = 0.4 * (pixels @ np.array([0.299, 0.587, 0.114]))[~seen]
  added = rest[:, 0] - luminance
  assert {*np.unique(np.rint(added / 36))} == {0.0, 1.0}  # between lines, and on them
  np.testing.assert_array_equal(marked[4:8, 10:14], pixels[4:8, 10:14])  # seen, not salient


def test_strips_of_what_was_not_seen_are_seamless(monkeypatch):
  noise = Image.fromarray(np.random.default_rng(2).integers(0, 255, (70, 90, 3), dtype=np.uint8))
  place = (20.5, 10.2, 60.5, 50.2)
  whole = np.asarray(overlays.overlay(noise, random_map(), place))
  monkeypatch.setattr(overlays, '_STRIP', 7)
  again = np.asarray(overlays.overlay(noise, random_map(), place)).astype(int)
  assert np.abs(again - whole).max() <= 1


def test_opacity_follows_saliency():
  grey = Image.new('RGB', (8, 8), (100, 100, 100))
  saliency = np.zeros((8, 8), np.float32)
  saliency[2, 5] = 1
  marked = np.asarray(overlays.overlay(grey, saliency, strength=0.75)).astype(int)
  colour = overlays.colourize(np.ones(1, np.float32))[0].astype(int)
  np.testing.assert_allclose(marked[2, 5], 25 + 0.75 * colour, atol=1)
  np.testing.assert_array_equal(marked[7, 0], [100, 100, 100])  # nothing salient, nothing added


def test_gradients_of_single_pixels_are_stretched():
  peaked = np.full((20, 20), 0.1, np.float32)
  peaked[3, 3] = 1  # a single pixel of 400, above the 99th percentile
  stretched = overlays.stretch(peaked)
  assert stretched.max() == 1 and stretched.min() == 1
  np.testing.assert_array_equal(overlays.stretch(np.zeros((3, 3))), np.zeros((3, 3)))
  assert figures.for_eyes('gradient', peaked).mean() == 1
  for method in ('group_cam', 'group_cam:latest', 'rise', 'occlusion', 'somebody_else'):
    np.testing.assert_array_equal(figures.for_eyes(method, peaked), peaked)


def test_elongated_and_large_pictures(tmp_path):
  long = overlays.overlay(Image.new('RGB', (4000, 3)), random_map(), (1998.5, 0, 2001.5, 3))
  assert long.size == (4000, 3)
  thumbnail = figures.thumbnail(Image.new('RGB', (5000, 20)), random_map(), (2490, 0, 2510, 20))
  assert thumbnail.size == (480, 2)


def test_small_pictures_are_enlarged_pixel_for_pixel():
  pixels = np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8)
  shown = np.asarray(figures.thumbnail(Image.fromarray(pixels)))
  np.testing.assert_array_equal(shown, pixels.repeat(3, 0).repeat(3, 1))


def test_figures_are_written_whole(tmp_path):
  picture, saliency = Image.new('RGB', (60, 40), (90, 120, 60)), random_map()
  panels = [figures.Panel(saliency, f'method {n}\nins. 0.5') for n in range(7)]
  curve = np.linspace(0, 1, 9)
  made = {
    'comparison': figures.comparison_figure(picture, panels, (10, 0, 50, 40), 'heading'),
    'curves': figures.curves_figure(
      {'rise': (curve, 1 - curve, curve)}, {'rise': (0.5, 0.5)}, 'heading'
    ),
    'sanity': figures.sanity_figure(picture, {'rise': panels[:3], 'grad_cam': panels[3:6]}),
    'examples': figures.examples_figure(
      [picture] * 2, ['0', '1'], {'rise': np.stack([saliency] * 2)}
    ),
  }
  for name, figure in made.items():
    figures.save_figure(tmp_path / f'{name}.png', figure)
    with Image.open(tmp_path / f'{name}.png') as image:
      assert min(image.size) > 100, name
      assert np.asarray(image.convert('L')).std() > 5, name
  labels = [text.get_text() for text in made['curves'].axes[0].get_legend().get_texts()]
  assert labels == ['RISE  0.500']


@pytest.mark.parametrize('shape', [(60, 40), (200, 40), (40, 120)])
@pytest.mark.parametrize('count', [1, 7])
def test_the_colour_bar_is_as_tall_as_the_maps(shape, count):
  panels = [figures.Panel(random_map(), f'method {n}') for n in range(count)]
  figure = figures.comparison_figure(Image.new('RGB', shape), panels, None, 'heading')
  *maps, bar = figure.axes
  shown = [axes.get_position() for axes in maps if axes.axison]
  place = bar.get_position()
  assert abs(place.y0 - min(p.y0 for p in shown)) < 1e-6
  assert abs(place.y1 - max(p.y1 for p in shown)) < 1e-6
  assert place.x0 > max(p.x1 for p in shown)


@pytest.mark.parametrize('count', [1, 4])
@pytest.mark.parametrize('name', ['a photograph ' * 8, 'n' * 200, r'\$' * 90, 'a' * 57 + r'\$' * 9])
def test_a_heading_is_never_cut(count, name):
  heading = f'{name}.jpeg: class {"a long class name, " * 3}, probability 0.123'
  panels = [figures.Panel(random_map(), 'method')] * count
  figure = figures.comparison_figure(Image.new('RGB', (60, 40)), panels, None, heading)
  figure.canvas.draw()
  text = figure._suptitle
  box = text.get_window_extent()
  assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
  assert ''.join(text.get_text().split()) == ''.join(heading.split())
  assert not any(line.endswith('\\') for line in text.get_text().splitlines())


def test_of_many_curves_three_are_in_colour():
  share = np.linspace(0, 1, 5)
  aucs = {name: (0.5 + n / 100, 0.5) for n, name in enumerate(figures.TITLES)}
  curves = dict.fromkeys(aucs, (share, share, share))
  figure = figures.curves_figure(curves, aucs, 'heading')
  best = list(aucs)[:-4:-1]
  for axes in figure.axes:
    bold = [line for line in axes.get_lines() if line.get_linewidth() > 1]
    names = {line.get_label().rpartition('  ')[0] for line in bold}
    assert names == {figures.title_of(name) for name in best}
    assert len({line.get_color() for line in bold}) == 3
    assert len(axes.get_legend().get_texts()) == len(aucs)
  values = [text.get_text()[-5:] for text in figure.axes[0].get_legend().get_texts()]
  assert values == sorted(values, reverse=True)  # the legend goes by merit
  few = figures.curves_figure(dict(list(curves.items())[:4]), aucs, 'heading')
  assert len({line.get_color() for line in few.axes[0].get_lines()}) == 4


def test_insertion_frames_go_from_the_baseline_to_the_picture():
  pixels = np.random.default_rng(3).random((6, 5, 3), np.float32)
  saliency = np.random.default_rng(4).random((6, 5), np.float32)
  frames = figures.insertion_frames(pixels, np.zeros_like(pixels), saliency, 4)
  arrays = [np.asarray(frame) for frame in frames]
  assert len(arrays) == 9  # ceil(30 / 4) steps and the start
  assert not arrays[0].any()
  np.testing.assert_array_equal(arrays[-1], np.rint(pixels * 255).astype(np.uint8))
  shown = arrays[1].any(-1)
  assert set(saliency[shown]) == set(np.sort(saliency, axis=None)[-4:])


def test_animation_has_a_frame_a_step(tmp_path):
  frames = [Image.new('RGB', (8, 8), (n * 60, 0, 0)) for n in range(3)]
  figures.write_insertion(
    tmp_path / 'a.gif', frames, np.array([0, 0.6, 1]), np.array([0.1, 0.5, 0.9]), 'heading'
  )
  with Image.open(tmp_path / 'a.gif') as gif:
    assert gif.n_frames == 3
  assert [p.name for p in tmp_path.iterdir()] == ['a.gif']


def test_a_failed_write_leaves_the_old_file(tmp_path):
  write_json(tmp_path / 'a.json', 1)
  with pytest.raises(RuntimeError), replacing(tmp_path / 'a.json') as temporary:
    temporary.write_text('half')
    raise RuntimeError
  assert (tmp_path / 'a.json').read_text() == '1\n'
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']
  with pytest.raises(UserError, match=r'cannot write .*a\.json/b\.json.*--output'):
    write_json(tmp_path / 'a.json' / 'b.json', 1)
