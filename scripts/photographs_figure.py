"""The figure of README.md: three photographs, and where six methods find the reason for a decision.

  python scripts/photographs_figure.py PHOTOS --output docs/photographs.jpg

PHOTOS is a folder with the pictures and a `photos.csv` whose columns `file`, `author`,
`landing_page` and `licence` say whose they are; the caption that the licence asks for is printed.
"""

from __future__ import annotations

import argparse
import codecs
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rest_jax import Classifier, explain
from rest_jax.evaluation.figures import new_figure
from rest_jax.explain.figures import for_eyes, title_of

FILES = ('01244097ca8ffdfa', '3692f6967c632fee', '1cbae41091a750dc')
METHODS = {
  'group_cam': {},
  'grad_cam': {},
  'eigen_cam': {},
  'rise': {'masks': 500},
  'occlusion': {},
  'smooth_grad': {},
}
_CELL = 1.9  # inches a map; the photograph takes two by two


def main(argv: Sequence[str] | None = None) -> None:
  """Draws the figure and prints its caption."""
  parser = argparse.ArgumentParser(description='Draws the figure of README.md.')
  parser.add_argument('photos', type=Path)
  parser.add_argument('--files', nargs=3, default=FILES)
  parser.add_argument('--model', default='efficientnet_lite0')
  parser.add_argument('--output', type=Path, default=Path('docs/photographs.jpg'))
  args = parser.parse_args(argv)
  with (args.photos / 'photos.csv').open(encoding='utf-8') as file:
    rows = {Path(row['file']).stem: row for row in csv.DictReader(file)}
  chosen = [rows[Path(name).stem] for name in args.files]
  draw(args.output, [args.photos / 'images' / row['file'] for row in chosen], args.model)
  print(caption(chosen))


def draw(output: Path, files: Sequence[Path], model: str) -> None:
  """Writes the figure.

  Args:
    output: of the figure, a JPEG.
    files: of the photographs, square ones.
    model: as `Classifier.load` takes it.
  """
  classifier = Classifier.load(model)
  predictions = classifier.predict(list(files), top=1)
  maps = {
    name: explain.explain(classifier, list(files), name, **options).maps
    for name, options in METHODS.items()
  }
  figure = new_figure(5 * _CELL, (2 * _CELL + 0.42) * len(files))
  grid = figure.add_gridspec(2 * len(files), 5)
  views = classifier.views(list(files))
  for row, (view, prediction) in enumerate(zip(views, predictions, strict=True)):
    picture, place, _ = view.look()
    title = f'{prediction.class_names[0]}, {prediction.probabilities[0]:.0%}'
    _show(figure.add_subplot(grid[2 * row : 2 * row + 2, :2]), picture, title)
    for number, (method, found) in enumerate(maps.items()):
      axes = figure.add_subplot(grid[2 * row + number // 3, 2 + number % 3])
      saliency = for_eyes(method, np.asarray(found[row]))
      _show(axes, explain.overlay(picture, saliency, place), title_of(method))
  figure.savefig(output, dpi=100, facecolor='white', pil_kwargs={'quality': 88, 'optimize': True})


def _show(axes: Any, picture: Image.Image, title: str) -> None:
  axes.imshow(np.asarray(picture), interpolation='antialiased')
  axes.set_title(title, fontsize=11)
  axes.set_axis_off()


def caption(rows: Sequence[dict[str, str]]) -> str:
  """Authors, pages and licence, in Markdown."""
  credits = [f'[{_name(row["author"])}]({_address(row["landing_page"])})' for row in rows]
  (licence,) = {row['licence'] for row in rows}
  return f'Photographs by {", ".join(credits)}, cropped, [CC BY 2.0]({licence}).'


def _address(text: str) -> str:
  return text.replace('http://', 'https://')


def _name(text: str) -> str:
  r"""An author's name; in the list, letters beyond ASCII are bytes in octal, such as \303\255."""
  return codecs.escape_decode(text.encode())[0].decode()  # pyright: ignore


if __name__ == '__main__':
  main()
