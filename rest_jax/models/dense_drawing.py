"""Pictures with what was found on them: boxes, masks, classes of pixels.

Colours are Okabe and Ito's, which colour-blind people tell apart; beyond eight classes they return
darker. Small pictures are enlarged until words on them can be read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rest_jax.data.semantic_folder import IGNORE
from rest_jax.models.dense_model import Objects

_COLOURS = (
  *((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)),
  *((86, 180, 233), (213, 94, 0), (240, 228, 66), (120, 120, 120)),
)
_LEAST_SIDE = 512  # px of the shorter side
_MASK = 0.45  # weight of a colour over the picture


def colour(label: int) -> tuple[int, int, int]:
  """The colour of a class: eight hues, then the same ones darker."""
  turn, place = divmod(label, len(_COLOURS))
  red, green, blue = (int(level * 0.7 ** (turn % 4)) for level in _COLOURS[place])
  return red, green, blue


def draw_objects(
  picture: np.ndarray,
  found: Objects,
  class_names: Sequence[str],
  *,
  least_score: float = 0.3,
  scored: bool = True,
) -> Image.Image:
  """A picture with boxes, names, scores and masks.

  Args:
    picture: (H, W, 3) uint8.
    found: in pixels of it.
    class_names: the name of each label.
    least_score: results under it are not drawn.
    scored: whether captions give scores; those of the truth say nothing.

  Returns:
    An RGB picture, enlarged where it was small.
  """
  kept = np.flatnonzero(found.scores >= least_score)[::-1]  # the best one on top
  pixels = picture.copy()
  if found.masks is not None:
    for i in kept:
      pixels = _tinted(pixels, found.masks[i], colour(int(found.labels[i])))
  canvas, scale = _enlarged(pixels)
  draw, font = ImageDraw.Draw(canvas), _font(canvas)
  for i in kept:
    label = int(found.labels[i])
    box = [float(edge) * scale for edge in found.boxes[i]]
    _frame(draw, box, colour(label), canvas)
    text = f'{class_names[label]} {found.scores[i]:.2f}' if scored else class_names[label]
    _caption(draw, box, text, colour(label), font, canvas)
  return canvas


def draw_segmentation(
  picture: np.ndarray, classes: np.ndarray, class_names: Sequence[str]
) -> Image.Image:
  """A picture with the class of every pixel as a tint, and a legend of those that occur.

  Args:
    picture: (H, W, 3) uint8.
    classes: (H, W) whole numbers; 255 is left as it is.
    class_names: the name of each class.

  Returns:
    An RGB picture with the legend at its right, enlarged where it was small.
  """
  counts = np.bincount(classes[classes != IGNORE].ravel(), minlength=len(class_names))
  present = [int(label) for label in np.argsort(-counts, kind='stable') if counts[label]]
  pixels = picture.copy()
  for label in present:
    pixels = _tinted(pixels, classes == label, colour(label))
  canvas, _ = _enlarged(pixels)
  return _with_legend(
    canvas, [(class_names[n], colour(n), counts[n] / counts.sum()) for n in present]
  )


def beside(*pictures: Image.Image) -> Image.Image:
  """Pictures in a row, at the height of the first."""
  height = pictures[0].height
  scaled = [p.resize((round(p.width * height / p.height), height)) for p in pictures]
  row = Image.new('RGB', (sum(p.width for p in scaled) + 8 * (len(scaled) - 1), height), 'white')
  left = 0
  for picture in scaled:
    row.paste(picture, (left, 0))
    left += picture.width + 8
  return row


def _tinted(pixels: np.ndarray, mask: np.ndarray, tint: tuple[int, int, int]) -> np.ndarray:
  """A mask's pixels mixed with a colour."""
  mixed = pixels * (1 - _MASK) + np.array(tint) * _MASK
  return np.where(mask[..., None], mixed.round().astype(np.uint8), pixels)


def _enlarged(pixels: np.ndarray) -> tuple[Image.Image, int]:
  """The picture by the least whole factor at which words can be read, and that factor."""
  scale = max(1, -(-_LEAST_SIDE // min(pixels.shape[:2])))
  picture = Image.fromarray(pixels)
  size = (picture.width * scale, picture.height * scale)
  return picture.resize(size, Image.Resampling.NEAREST), scale


def _font(canvas: Image.Image) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(max(12, min(canvas.size) // 36))


def _frame(draw: ImageDraw.ImageDraw, box: list[float], tint, canvas: Image.Image) -> None:
  """A box with a white rim, so that it is seen on any ground."""
  width = max(2, min(canvas.size) // 256)
  draw.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline='white', width=width + 2)
  draw.rectangle(box, outline=tint, width=width)


def _caption(draw, box: list[float], text: str, tint, font, canvas: Image.Image) -> None:
  """Words above a box, or inside of it where the picture ends."""
  left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
  width, height = right - left + 6, bottom - top + 6
  x = min(max(box[0], 0), canvas.width - width)
  y = box[1] - height if box[1] >= height else box[1]
  draw.rectangle([x, y, x + width, y + height], fill=tint)
  draw.text((x + 3 - left, y + 3 - top), text, fill=_ink(tint), font=font)


def _ink(tint: tuple[int, int, int]) -> str:
  """Black or white, whichever is read more easily on a colour."""
  red, green, blue = tint
  return 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else 'white'


def _with_legend(canvas: Image.Image, entries: list[tuple[str, tuple, float]]) -> Image.Image:
  """The picture with a column of colours and names at its right."""
  font = _font(canvas)
  draw = ImageDraw.Draw(canvas)
  words = [f'{name} {share:.1%}' for name, _, share in entries]
  boxes = [draw.textbbox((0, 0), word, font=font) for word in words]
  line = int(max((box[3] for box in boxes), default=0)) + 8
  room = canvas.height // max(line, 1)
  width = int(max((box[2] for box in boxes[:room]), default=0)) + line + 16
  whole = Image.new('RGB', (canvas.width + width, canvas.height), 'white')
  whole.paste(canvas, (0, 0))
  draw = ImageDraw.Draw(whole)
  for i, ((_, tint, _), word) in enumerate(zip(entries[:room], words, strict=False)):
    x, y = canvas.width + 8, i * line + 4
    draw.rectangle([x, y, x + line - 8, y + line - 8], fill=tint)
    draw.text((x + line, y - 1), word, fill='black', font=font)
  return whole
