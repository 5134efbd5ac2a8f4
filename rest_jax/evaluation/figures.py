"""Matplotlib figures without pyplot (no global state, no window system), and text in them.

Matplotlib sets what stands between dollars as a formula, and draws boxes, with a warning, where its
font has no glyph. Names of files, classes and models pass through `literal`, which has neither.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rest_jax import files
from rest_jax.text import escaped, legible, shortened

if TYPE_CHECKING:
  from matplotlib.figure import Figure
  from PIL import Image

# Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#7F7F7F')
_LONGEST = 48  # characters of a name; one of 255 would leave a figure no room for its axes
_LEFT_TO_RIGHT, _RIGHT_TO_LEFT = '\N{LEFT-TO-RIGHT MARK}', ('R', 'AL')
_NO_WIDTH = '\N{ZERO WIDTH SPACE}'
_SIGNS = {True: (' ✓', '#00684A'), False: (' ✗', '#A33F00'), None: ('', '0.3')}
_PLACEHOLDERS = ('Last Resort',)  # fonts that have a box for every character


def literal(text: object, most: int = _LONGEST) -> str:
  """Text of others for a figure: drawn character by character, on one line.

  Args:
    text: a name of a file, a class, a model.
    most: characters that are shown; the middle of a longer text is left out.

  Returns:
    What any text of a figure takes. Characters that no font of the system has are written as
    escapes; `save_figure` and `set_fonts` bring the fonts of the others.
  """
  shown = shortened(legible(text), most)
  shown = ''.join(c if _font_of(c) is not None else escaped(c) for c in shown)
  shown = shown.replace('$', r'\$')
  if any(unicodedata.bidirectional(char) in _RIGHT_TO_LEFT for char in shown):
    shown = f'{_LEFT_TO_RIGHT}{shown}{_LEFT_TO_RIGHT}'  # else it would turn what we write around it
  # Matplotlib leaves labels that begin so out of its legends; the mark before it has no width.
  return f'{_NO_WIDTH}{shown}' if shown.startswith('_') else shown


def new_figure(width: float, height: float) -> Figure:
  """An empty figure of that many inches, laid out without overlaps."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def save_figure(
  path: Path, figure: Figure, place: object = None, advice: str = files.ADVICE, **options: Any
) -> None:
  """Writes a figure as PNG, through a temporary name.

  Args:
    path: of the file.
    figure: any.
    place: what an error is about; the file by default.
    advice: what to do about an error.
    **options: of `Figure.savefig`, such as dpi.

  Raises:
    UserError: the place cannot be written.
  """
  set_fonts(figure)
  with files.replacing(path, place, advice) as temporary, quiet_fonts():
    figure.savefig(temporary, format='png', **options)


def as_image(figure: Figure, dpi: int = 90) -> Image.Image:
  """A figure as a picture, which a notebook shows."""
  from PIL import Image

  file = io.BytesIO()
  set_fonts(figure)
  figure.savefig(file, format='png', dpi=dpi, facecolor='white', bbox_inches='tight')
  return Image.open(file)


class Strip(NamedTuple):
  """A row of pictures, (N, H, W, C) in [0, 1], with a line below each that is right or wrong."""

  title: str
  pictures: np.ndarray
  captions: Sequence[str]
  right: Sequence[bool | None]


def draw_strips(path: Path, strips: Sequence[Strip], advice: str = files.ADVICE) -> None:
  """Draws rows of pictures, what the model says below each: a tick where it is right.

  Args:
    path: of the PNG file.
    strips: rows of as many pictures each.
    advice: what to do about an error.

  Raises:
    UserError: it cannot be written.
  """
  columns = len(strips[0].pictures)
  figure = new_figure(1.35 * columns + 1.7, 1.62 * len(strips) + 0.2)
  grid = figure.subplots(len(strips), columns, squeeze=False)
  for row, strip in zip(grid, strips, strict=True):
    shown = zip(row, strip.pictures, strip.captions, strip.right, strict=True)
    for axes, picture, caption, right in shown:
      show_picture(axes, np.clip(picture, 0, 1))
      sign, colour = _SIGNS[right]
      axes.set_xlabel(literal(caption) + sign, fontsize=8, color=colour, labelpad=2)
    title = '\n'.join(map(literal, strip.title.split('\n')))
    row[0].set_ylabel(title, fontsize=9, rotation=0, ha='right', va='center', labelpad=6)
  save_figure(path, figure, path.parent, advice, dpi=120)


def show_picture(axes: Any, picture: np.ndarray) -> None:
  """A picture (H, W, C) in [0, 1], in colours or of one channel grey, without ticks."""
  grey = picture.shape[-1] == 1
  options = {'cmap': 'gray'} if grey else {}
  axes.imshow(picture[..., 0] if grey else picture, vmin=0, vmax=1, **options)
  axes.set(xticks=[], yticks=[])


def set_fonts(figure: Figure) -> None:
  """Lets every text of a figure fall back to the system's fonts that its characters need."""
  from matplotlib.text import Text

  texts: list[Any] = figure.findobj(Text)
  chars = sorted({char for text in texts for char in text.get_text()})
  names = dict.fromkeys(name for char in chars if (name := _font_of(char)))
  if names:
    for text in texts:
      text.set_fontfamily([*text.get_fontfamily(), *names])


@contextlib.contextmanager
def quiet_fonts() -> Iterator[None]:
  """Keeps to itself that a font for some characters comes in another weight only."""
  log = logging.getLogger('matplotlib.font_manager')
  before = log.level
  log.setLevel(logging.ERROR)
  try:
    yield
  finally:
    log.setLevel(before)


@functools.lru_cache(maxsize=8192)
def _font_of(char: str) -> str | None:
  """The font that has a character: '' the usual one, None where there is none."""
  from matplotlib import font_manager

  if char in '\n ' or _has(font_manager.findfont(font_manager.FontProperties()), char):
    return ''
  return next((name for name in _families() if _has(_file(name), char)), None)


@functools.lru_cache(maxsize=1)
def _families() -> tuple[str, ...]:
  """What the system has, the plain ones first."""
  from matplotlib import font_manager

  def odd(font: Any) -> tuple[bool, bool, str]:
    return font.style != 'normal', font.weight not in ('normal', 400), font.name

  fonts = sorted(font_manager.fontManager.ttflist, key=odd)
  return tuple(dict.fromkeys(f.name for f in fonts if not f.name.startswith(_PLACEHOLDERS)))


@functools.cache
def _file(name: str) -> str:
  """The file that the name of a family stands for."""
  from matplotlib import font_manager

  with quiet_fonts():
    return str(font_manager.findfont(font_manager.FontProperties(family=[name])))


def _has(file: str, char: str) -> bool:
  if ord(char) not in _characters(file):
    return False
  from matplotlib.ft2font import FT2Font

  try:  # fonts of coloured pictures list characters that they cannot draw
    font = FT2Font(file)
    font.set_size(12, 72)
    font.load_char(ord(char))
  except Exception:  # there is no common class for what a font may lack
    return False
  return True


@functools.cache
def _characters(file: str) -> frozenset[int]:
  from matplotlib.ft2font import FT2Font

  try:
    return frozenset(FT2Font(file).get_charmap())
  except Exception:  # damaged, or of a kind that FreeType does not draw
    return frozenset()
