"""Figures: names are drawn as they are, and without a warning (which would be an error here)."""

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

from rest_jax.attacks.figures import draw_attacks
from rest_jax.evaluation import figures


def drawn(text, tmp_path):
  """The pixels of a figure with a text."""
  figure = figures.new_figure(4, 1)
  figure.text(0, 0.5, text)
  figures.save_figure(tmp_path / 'x.png', figure, dpi=60)
  with Image.open(tmp_path / 'x.png') as image:
    return np.asarray(image)


@given(st.text(st.characters(), max_size=60))
def test_any_name_can_be_drawn(name):
  figure = figures.new_figure(4, 1)
  figure.text(0, 0.5, f'{figures.literal(name)}: class {figures.literal(name)}')
  figures.set_fonts(figure)
  with figures.quiet_fonts():
    figure.canvas.draw()


@pytest.mark.parametrize(
  'name', ['$5 and $6', '$', '$x^2$', '$\\frac{1}$', 'a\\$b', '$$', '\\alpha']
)
def test_dollars_are_characters(name, tmp_path):
  with matplotlib.rc_context({'text.parse_math': False}):
    plain = drawn(name, tmp_path)
  np.testing.assert_array_equal(drawn(figures.literal(name), tmp_path), plain)


def test_what_no_font_has_is_escaped(monkeypatch):
  monkeypatch.setattr(figures, '_font_of', lambda char: '' if char.isascii() else None)
  assert figures.literal('狗 a') == '\\u72d7 a'
  monkeypatch.setattr(figures, '_font_of', lambda char: '' if char.isascii() else 'Some CJK')
  assert figures.literal('狗 a') == '狗 a'
  figure = figures.new_figure(2, 1)
  text = figure.text(0, 0, '狗')
  usual = figure.text(0, 1, 'a').get_fontfamily()
  figures.set_fonts(figure)
  assert text.get_fontfamily() == [*usual, 'Some CJK']


def test_long_names_and_names_from_right_to_left():
  assert len(figures.literal('x' * 300)) == 48
  assert figures.literal('كلب')[0] == figures.literal('كلب')[-1] == '\N{LEFT-TO-RIGHT MARK}'


def test_a_label_that_begins_with_an_underscore_stands_in_the_legend():
  axes = figures.new_figure(2, 1).subplots()
  axes.plot([0, 1], label=figures.literal('_mine'))
  assert [t.get_text()[-5:] for t in axes.legend().findobj(Text) if t.get_text()] == ['_mine']


def test_class_names_in_a_picture_of_attacks(tmp_path):
  images = np.full((2, 8, 8, 3), 0.5, np.float32)
  names = ['$5 and $6', '狗\n\x1b']
  draw_attacks(tmp_path / 'x.png', images, images, [0, 1], [1, 0], class_names=names, title='a$b$')
  with Image.open(tmp_path / 'x.png') as image:
    assert image.size[0] > 100
