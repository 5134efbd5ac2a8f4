"""A GIF of the insertion: the picture appears in the order of its saliency, the curve beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rest_jax.evaluation.figures import new_figure, quiet_fonts, set_fonts
from rest_jax.explain.metrics.order import ranks
from rest_jax.files import replacing

_FRAME_MS, _LAST_MS = 120, 1800


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
    drawn = [drawing.quantize(128) for drawing in _draw(frames, share, curve, heading)]
  times = [_FRAME_MS] * (len(drawn) - 1) + [_LAST_MS]
  with replacing(path) as temporary:
    drawn[0].save(
      temporary, save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=False
    )


def _draw(
  frames: Sequence[Image.Image], share: np.ndarray, curve: np.ndarray, heading: str
) -> list[Image.Image]:
  figure = new_figure(6.4, 3.0)
  figure.suptitle(heading, fontsize=11)
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
