"""Figures of explanations: comparison of methods, curves, sanity strip, examples, animation.

Matplotlib figures without pyplot: no global state, no window system.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from rest_jax.evaluation import figures as drawing
from rest_jax.evaluation.figures import literal, new_figure, quiet_fonts, set_fonts
from rest_jax.explain.methods import METHODS, list_methods
from rest_jax.explain.metrics.order import ranks
from rest_jax.explain.metrics.sanity import SanityCheck
from rest_jax.explain.overlays import COLOURS, overlay, stretch
from rest_jax.files import replacing

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_SMALL, _LARGE = 192, 480  # pixels that a picture in a figure has on its longer side
_FRAME_MS, _LAST_MS = 120, 1800
_LETTERS = 9  # of a heading, an inch
_STEP = 1.05  # inches of a map of the sanity strip
_HIGHLIGHTED, _FEW = 3, 6  # curves in colour where there are more than a few

# As tables list them: the methods of the package, and a variant behind its method.
TITLES = {name: METHODS[name].title for name in list_methods()}
TITLES = {'group_cam': TITLES['group_cam'], 'group_cam:latest': 'Group-CAM (latest)'} | TITLES


class Panel(NamedTuple):
  """A map in a figure: (h, w) floats in [0, 1] and the lines above it."""

  saliency: np.ndarray
  title: str


def title_of(method: str) -> str:
  """The name of a method as its paper writes it."""
  known = METHODS.get(method)
  return TITLES.get(method, method.replace('_', ' ')) if known is None else known.title


def for_eyes(method: str, saliency: np.ndarray) -> np.ndarray:
  """A map as pictures show it: gradients of single pixels stretched, all others as they are."""
  known = METHODS.get(method.split(':')[0])
  return stretch(saliency) if known is not None and known.by_pixel else saliency


def save_figure(path: Path, figure: Figure, dpi: int = 110) -> None:
  """Writes a figure as PNG.

  Raises:
    UserError: the place cannot be written.
  """
  drawing.save_figure(
    path, figure, dpi=dpi, facecolor='white', bbox_inches='tight', pad_inches=0.06
  )


def thumbnail(
  picture: Image.Image,
  saliency: np.ndarray | None = None,
  place: tuple[float, float, float, float] | None = None,
) -> Image.Image:
  """A picture at a size for figures, with its map where one is given.

  Args:
    picture: mode RGB; a small one is enlarged pixel for pixel, its map smoothly.
    saliency: (h, w) floats in [0, 1].
    place: the rectangle of the picture that the map covers; all of it by default.
  """
  side = max(picture.size)
  scale = _LARGE / side if side > _LARGE else float(max(1, _SMALL // side))
  kernel = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
  size = tuple(max(1, round(length * scale)) for length in picture.size)
  small = picture.resize((size[0], size[1]), kernel, reducing_gap=3.0)
  if saliency is None:
    return small
  place = place or (0.0, 0.0, float(picture.width), float(picture.height))
  across, down = size[0] / picture.width, size[1] / picture.height
  scaled = (place[0] * across, place[1] * down, place[2] * across, place[3] * down)
  return overlay(small, saliency, scaled)


def comparison_figure(
  picture: Image.Image,
  panels: Sequence[Panel],
  place: tuple[float, float, float, float] | None = None,
  heading: str = '',
) -> Figure:
  """The picture and one overlay a method, side by side.

  Args:
    picture: mode RGB.
    panels: maps with their titles.
    place: the rectangle of the picture that the maps cover.
    heading: what the picture is taken for; names of others in it went through
      `rest_jax.evaluation.figures.literal`, as they did in the titles of the panels.
  """
  rows = -(-(len(panels) + 1) // 6)
  columns = -(-(len(panels) + 1) // rows)  # evenly filled
  height = 2.2 * min(max(picture.height / picture.width, 0.3), 2.0)
  lines = 1 + max((panel.title.count('\n') for panel in panels), default=0)
  figure = new_figure(2.2 * columns + 0.9, (height + 0.2 * lines + 0.1) * rows + 0.4)
  _head(figure, heading)
  axes = figure.subplots(rows, columns, squeeze=False)
  _show(axes.flat[0], thumbnail(picture), 'picture')
  for place_on, panel in zip(axes.flat[1:], panels, strict=False):
    _show(place_on, thumbnail(picture, panel.saliency, place), panel.title)
  for empty in axes.flat[len(panels) + 1 :]:
    empty.set_axis_off()
  _colour_bar(figure, axes)
  return figure


def curves_figure(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
  aucs: Mapping[str, tuple[float, float]],
  heading: str = '',
) -> Figure:
  """Insertion and deletion curves.

  Args:
    curves: {method: (insertion (n,), deletion (n,), share (n,))}, probabilities of the target and
      the share of the pixels that are changed, as `metrics.Curves` has them.
    aucs: {method: (insertion AUC, deletion AUC)}; of more than six methods the three with the
      largest difference of the two are in colour.
    heading: which picture and class.
  """
  figure = new_figure(9.6 if len(curves) <= _FEW else 13.5, 3.9)
  _head(figure, heading)
  styles = _styles(list(curves), aucs)
  for column, (axes, kind) in enumerate(
    zip(figure.subplots(1, 2, sharey=True), ('insertion', 'deletion'), strict=True)
  ):
    for method in sorted(curves, key=lambda m: (1 - 2 * column) * -aucs[m][column]):
      lines = curves[method]
      label = f'{literal(title_of(method))}  {aucs[method][column]:.3f}'
      axes.plot(100 * np.asarray(lines[2]), lines[column], label=label, **styles[method])
    axes.set(xlabel=f'pixels {"inserted" if column == 0 else "deleted"} (%)', ylim=(-0.03, 1.03))
    better = 'higher' if column == 0 else 'lower'
    axes.set_title(f'{kind} (AUC, {better} is better)', fontsize=10)
    axes.grid(alpha=0.3)
    _legend(axes, len(curves))
  figure.axes[0].set_ylabel('probability of the class')
  return figure


def _styles(
  methods: Sequence[str], aucs: Mapping[str, tuple[float, float]]
) -> dict[str, dict[str, Any]]:
  """A colour each where they are few; of many the best three, the others thin and grey."""
  marked = list(methods)
  if len(methods) > _FEW:
    by_merit = sorted(methods, key=lambda m: aucs[m][1] - aucs[m][0])
    marked = by_merit[:_HIGHLIGHTED]
  styles: dict[str, dict[str, Any]] = {m: {'color': '0.72', 'linewidth': 0.9} for m in methods}
  for number, method in enumerate(marked):
    colour = drawing.COLOURS[number % len(drawing.COLOURS)]
    styles[method] = {'color': colour, 'linewidth': 1.8, 'zorder': 3}
  return styles


def sanity_figure(
  picture: Image.Image,
  strips: Mapping[str, Sequence[Panel]],
  place: tuple[float, float, float, float] | None = None,
  heading: str = '',
) -> Figure:
  """Maps while layers are re-initialised, a row a method.

  Args:
    picture: mode RGB.
    strips: {method: the original map and one for each step}, all of the same length.
    place: the rectangle of the picture that the maps cover.
    heading: above it all.
  """
  columns = 1 + max(len(panels) for panels in strips.values())
  height = _STEP * min(max(picture.height / picture.width, 0.3), 2.0)
  figure = new_figure(_STEP * columns + 0.9, (height + 0.45) * len(strips) + 0.4)
  _head(figure, heading)
  axes = figure.subplots(len(strips), columns, squeeze=False)
  for row, (method, panels) in zip(axes, strips.items(), strict=True):
    _show(row[0], thumbnail(picture), _wrapped(literal(title_of(method))), size=7)
    for place_on, panel in zip(row[1:], panels, strict=True):
      marked = thumbnail(picture, for_eyes(method, panel.saliency), place)
      _show(place_on, marked, panel.title, size=6)
  _colour_bar(figure, axes)
  return figure


def panels(check: SanityCheck, row: int = 0) -> Sequence[Panel]:
  """The original map and one for each step, with rank correlation and SSIM above.

  Args:
    check: what `explain.sanity_check` gave.
    row: which of its images.
  """
  made = [Panel(np.asarray(check.original[row]), 'trained')]
  for step in check.rows:
    likeness = f'ρ {step.rank_correlation[row]:.2f}, SSIM {step.ssim[row]:.2f}'
    if np.isnan(step.rank_correlation[row]):
      likeness = 'constant map' if step.constant[row] else 'trained map constant'
    made.append(Panel(np.asarray(step.maps[row]), f'{literal(step.layer)}\n{likeness}'))
  return made


def examples_figure(
  pictures: Sequence[Image.Image],
  names: Sequence[str],
  maps: Mapping[str, np.ndarray],
) -> Figure:
  """Scenes of a data set, a row each, with a column for each method.

  Args:
    pictures: mode RGB, of one size.
    names: what stands left of each.
    maps: {method: (len(pictures), h, w) floats in [0, 1]}.
  """
  figure = new_figure(0.95 * (len(maps) + 1) + 0.8, 0.97 * len(pictures) + 0.9)
  axes = figure.subplots(len(pictures), len(maps) + 1, squeeze=False)
  for number, (row, picture) in enumerate(zip(axes, pictures, strict=True)):
    _show(row[0], thumbnail(picture), '')
    row[0].set_ylabel(literal(names[number], 24), fontsize=8)
    for place_on, (method, values) in zip(row[1:], maps.items(), strict=True):
      title = _wrapped(literal(title_of(method))) if number == 0 else ''
      _show(place_on, thumbnail(picture, for_eyes(method, values[number])), title, size=8)
  _colour_bar(figure, axes)
  return figure


def _wrapped(title: str) -> str:
  return title.replace(' ', '\n')


def _head(figure: Figure, heading: str) -> None:
  """The heading of a figure, in as many lines as its width needs; the figure grows by them."""
  width, height = figure.get_size_inches()
  most = int(width * _LETTERS)
  words = re.sub(rf'(?>\\\S|\S){{{most}}}', r'\g<0> ', heading)  # no break behind a backslash
  lines = textwrap.wrap(words, most + 1, break_long_words=False, break_on_hyphens=False)
  figure.set_size_inches(width, height + 0.18 * (len(lines) - 1))
  figure.suptitle('\n'.join(lines), fontsize=11)


def _show(axes: Any, picture: Image.Image, title: str, size: int = 9) -> None:
  axes.imshow(np.asarray(picture), interpolation='antialiased')
  axes.set(xticks=[], yticks=[])
  axes.set_title(title, fontsize=size, linespacing=1.1)
  for edge in axes.spines.values():
    edge.set_visible(False)


def _colour_bar(figure: Figure, axes: np.ndarray) -> None:
  """Right of the maps, from the top of the uppermost to the bottom of the lowest."""
  from matplotlib.cm import ScalarMappable

  bar = figure.colorbar(
    ScalarMappable(cmap=COLOURS), ax=axes.ravel().tolist(), aspect=30, pad=0.01, shrink=0.8
  )
  bar.set_label('saliency', fontsize=8)
  bar.ax.tick_params(labelsize=8)
  set_fonts(figure)
  with quiet_fonts():
    figure.draw_without_rendering()  # where the maps are is known after the layout alone
  figure.set_layout_engine('none')
  maps = [one.get_position() for one in axes.flat if one.axison]
  low, high = min(place.y0 for place in maps), max(place.y1 for place in maps)
  place = bar.ax.get_position()
  bar.ax.set_box_aspect(None)
  bar.ax.set_aspect('auto')
  bar.ax.set_position((place.x0, low, place.width, high - low))


def _legend(axes: Any, count: int) -> None:
  """Beside the curves where they are many, with what is grey there in grey."""
  if count <= _FEW:
    axes.legend(fontsize=8)
    return
  legend = axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.0, 0.5), frameon=False)
  for line, text in zip(legend.get_lines(), legend.get_texts(), strict=True):
    if line.get_linewidth() < 1:
      text.set_color('0.45')
    else:
      text.set_fontweight('bold')


# ---- The insertion as an animation --------------------------------------------------------------


def insertion_frames(
  pixels: np.ndarray, baseline: np.ndarray, saliency: np.ndarray, step: int
) -> list[Image.Image]:
  """The picture at every step of the insertion.

  Args:
    pixels: (H, W, 3) floats in [0, 1], what the model sees.
    baseline: the same shape, what the insertion starts from.
    saliency: (H, W); equal values go in the order of `metrics.order`, as the curve has them.
    step: pixels a step.

  Returns:
    ceil(H W / step) + 1 pictures at the model's size, the first the baseline.
  """
  rank = ranks(saliency[None])[0][..., None]
  mixed = [np.where(rank < n * step, pixels, baseline) for n in range(-(-rank.size // step) + 1)]
  return [Image.fromarray(np.rint(m * 255).clip(0, 255).astype(np.uint8)) for m in mixed]


def write_insertion(
  path: Path,
  frames: Sequence[Image.Image],
  share: np.ndarray,
  curve: np.ndarray,
  heading: str = '',
) -> None:
  """Writes the animation.

  Args:
    path: of the GIF.
    frames: the picture at each step, from the baseline to the whole picture.
    share: (len(frames),) of the pixels inserted at each, as `Curves` has it.
    curve: (len(frames),) probability of the target at each.
    heading: which method and class; names went through `rest_jax.evaluation.figures.literal`.

  Raises:
    UserError: the place cannot be written.
  """
  with quiet_fonts():
    drawn = [drawn.quantize(128) for drawn in _drawings(frames, share, curve, heading)]
  times = [_FRAME_MS] * (len(drawn) - 1) + [_LAST_MS]
  with replacing(path) as temporary:
    drawn[0].save(
      temporary, save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=False
    )


def _drawings(
  frames: Sequence[Image.Image], share: np.ndarray, curve: np.ndarray, heading: str
) -> list[Image.Image]:
  figure = new_figure(6.4, 3.0)
  _head(figure, heading)
  left, right = figure.subplots(1, 2)
  shown = left.imshow(np.asarray(frames[0]))
  left.set(xticks=[], yticks=[])
  share = 100 * share
  (line,) = right.plot([], [], linewidth=2)
  (point,) = right.plot([], [], 'o', color=line.get_color())
  right.set(xlabel='pixels inserted (%)', ylabel='probability of the class')
  right.set(xlim=(-3, 103), ylim=(-0.03, 1.03))
  right.grid(alpha=0.3)
  set_fonts(figure)
  drawings = []
  for number, frame in enumerate(frames):
    shown.set_data(np.asarray(frame))
    line.set_data(share[: number + 1], curve[: number + 1])
    point.set_data(share[number : number + 1], curve[number : number + 1])
    drawings.append(_rendered(figure))
  return drawings


def _rendered(figure) -> Image.Image:
  figure.canvas.draw()
  figure.set_layout_engine('none')  # it holds for all frames, and takes most of the time
  return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
