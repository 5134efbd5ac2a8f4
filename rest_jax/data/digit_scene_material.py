"""What `digit_scenes` are made from: handwritten digits and photographs, dealt out to the splits.

The digits are the UCI optical digits that scikit-learn carries (1,797 of 8x8 pixels, E. Alpaydin
and C. Kaynak 1998), the photographs scikit-learn's two sample images. A split owns its digits and
its part of each photograph; nothing of one split is ever seen in the other.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rest_jax.data.digit_scene_drawing import enlarge

SPLITS = ('train', 'test')
CELL = 8  # table pixels for one pixel of an 8x8 digit
CENTRE = (12 * CELL - 1) / 2  # of a digit's table of 96x96
_SPLIT_SEED = 20_210_528
# (photograph, first column, end column): the two splits lie beside each other with a gap between.
_REGIONS = {
  'train': ((0, 0, 440), (1, 0, 344)),
  'test': ((0, 448, 640), (1, 352, 640)),
}


@dataclasses.dataclass(frozen=True)
class Material:
  """What the scenes of one split are made from.

  Attributes:
    tables: (N, 96, 96) uint8, the split's digits enlarged, ink 255 on 0, two cells of border.
    outlines: N arrays (M, 2), places of ink from the centre, in pixels of the 8x8 digit.
    labels: (N,) int, 0..9.
    digit_ids: (N,) int, row of each digit in scikit-learn's data set.
    photographs: per region (full, half): (H, W, 3) uint8 at full and at half resolution.
    regions: per region (photograph, first column, end column) in full-resolution pixels.
  """

  tables: np.ndarray
  outlines: tuple[np.ndarray, ...]
  labels: np.ndarray
  digit_ids: np.ndarray
  photographs: tuple[tuple[np.ndarray, np.ndarray], ...]
  regions: tuple[tuple[int, int, int], ...]


def load_material(split: str) -> Material:
  """Loads a split's digits and its part of the photographs.

  Args:
    split: 'train' or 'test'.

  Returns:
    The material; the same for every call, a fifth of each class's digits for 'test'.
  """
  from sklearn.datasets import load_digits, load_sample_images

  digits = load_digits()
  grids, labels = digits.images.astype(np.int64), digits.target.astype(np.int64)  # type: ignore
  digit_ids = _digit_ids(labels, split)
  tables = enlarge(grids[digit_ids], CELL)
  photographs = load_sample_images().images  # type: ignore
  parts = []
  for index, start, end in _REGIONS[split]:
    full = np.ascontiguousarray(photographs[index][:426, start:end])
    parts.append((full, _halve(full)))
  return Material(
    tables=tables,
    outlines=tuple(_outline(table) for table in tables),
    labels=labels[digit_ids],
    digit_ids=digit_ids,
    photographs=tuple(parts),
    regions=_REGIONS[split],
  )


def _digit_ids(labels: np.ndarray, split: str) -> np.ndarray:
  """Rows of a split's digits: per class a fixed random fifth is for testing."""
  rng = np.random.default_rng(_SPLIT_SEED)
  chosen = []
  for label in range(10):
    rows = rng.permutation(np.flatnonzero(labels == label))
    tests = len(rows) // 5
    chosen.append(rows[:tests] if split == 'test' else rows[tests:])
  return np.sort(np.concatenate(chosen))


def _halve(image: np.ndarray) -> np.ndarray:
  """Means of 2x2 blocks, rounded; (H, W, C) uint8 with even sides."""
  height, width = image.shape[0] // 2, image.shape[1] // 2
  blocks = image.astype(np.int32).reshape(height, 2, width, 2, -1)
  return ((blocks.sum(axis=(1, 3)) + 2) >> 2).astype(np.uint8)


def _outline(table: np.ndarray) -> np.ndarray:
  """Positions of ink near the edge of a digit, (M, 2) as x, y."""
  ink = table > 102
  core = ink.copy()
  core[1:-1, 1:-1] &= ink[:-2, 1:-1] & ink[2:, 1:-1] & ink[1:-1, :-2] & ink[1:-1, 2:]
  y, x = np.nonzero(ink & ~core)
  return (np.stack([x, y], axis=1) - CENTRE) / CELL
