"""Images that an evaluation keeps: some to probe the model with, some to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.attacks.figures import draw_attacks
from rest_jax.attacks.health import Sample
from rest_jax.attacks.record import Record, RunName
from rest_jax.evaluation.batches import Chunk, keys_of
from rest_jax.text import radius_text


class SampleRows:
  """Collects images for the health checks: the first that are classified correctly."""

  def __init__(self, batch_size: int):
    """Takes the size of the sample."""
    self._size = batch_size
    self._right: list[tuple[np.ndarray, int, int]] = []
    self._wrong: list[tuple[np.ndarray, int, int]] = []

  def add(self, chunk: Chunk, correct: np.ndarray) -> None:
    """Takes what is still wanted of a chunk; correct is bool (N,)."""
    for rows, kept in ((correct, self._right), (~correct, self._wrong)):
      for row in np.flatnonzero(rows)[: self._size - len(kept)]:
        kept.append((chunk.images[row], int(chunk.labels[row]), int(chunk.indices[row])))

  def sample(self, key: jax.Array) -> Sample:
    """The sample, filled up with copies of its first image.

    Args:
      key: of the evaluation.

    Returns:
      Images that are classified correctly; others where there is none.
    """
    chosen = self._right or self._wrong
    real = np.arange(self._size) < len(chosen)
    chosen = chosen + chosen[:1] * (self._size - len(chosen))
    images, labels, indices = zip(*chosen, strict=True)
    return Sample(
      images=jnp.asarray(np.stack(images), jnp.float32),
      labels=jnp.asarray(np.asarray(labels, np.int32)),
      keys=keys_of(key, np.asarray(indices)),
      counts=real & bool(self._right),
      real=real,
    )


class Shown:
  """Collects the first successes of each run and draws them."""

  def __init__(self, columns: int):
    """Takes the number of columns of a picture."""
    self._columns = columns
    self._kept: dict[RunName, list[tuple[np.ndarray, np.ndarray, int, int]]] = {}

  def add(self, images: np.ndarray, adv: np.ndarray, records: list[Record]) -> None:
    """Takes what is still wanted of a batch.

    Args:
      images: (N, H, W, C), N or more rows of them.
      adv: likewise.
      records: N, of one run.
    """
    for row, record in enumerate(records):
      kept = self._kept.setdefault(record.run, [])
      if record.success and len(kept) < self._columns:
        kept.append((images[row], adv[row], record.clean, record.adversarial))

  def draw(self, directory: Path, class_names: Sequence[str] | None) -> None:
    """Draws `<run>.png` for each run that had a success.

    Raises:
      UserError: they cannot be written.
    """
    for run, kept in self._kept.items():
      path = directory / f'{run.stem}.png'
      # The rest of a run that was stopped does not replace its picture.
      drawable = kept and kept[0][0].shape[-1] in (1, 3)
      if drawable and (len(kept) == self._columns or not path.exists()):
        images, adv, clean, wrong = zip(*kept, strict=True)
        title = f'{run.attack}, {run.norm}' + (
          '' if run.eps is None else f' radius {radius_text(run.eps)}'
        )
        draw_attacks(
          path, np.stack(images), np.stack(adv), clean, wrong, class_names=class_names, title=title
        )
