"""The objects that detectors of both sides are trained on."""

from __future__ import annotations

import numpy as np

OBJECTS, CLASSES = 10, 80


def boxes_of(height: int, width: int) -> np.ndarray:
  """Ten boxes (x1, y1, x2, y2) of several sizes inside of a canvas, float32 (10, 4)."""
  rng = np.random.default_rng(0)
  longest = min(400, height / 2, width / 2)
  size = rng.uniform(longest / 10, longest, (OBJECTS, 2))
  start = rng.uniform(0, 1, (OBJECTS, 2)) * (np.array([width, height]) - size)
  return np.concatenate([start, start + size], 1).astype(np.float32)
