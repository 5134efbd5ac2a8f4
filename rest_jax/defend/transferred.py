"""Adversarial images of the undefended model, made once and tried on every defence."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.devices import shared, shared_batch
from rest_jax.attacks.ensemble import AutoAttack
from rest_jax.attacks.judge import fingerprint
from rest_jax.attacks.record import RunName
from rest_jax.attacks.registry import Attack
from rest_jax.errors import UserError
from rest_jax.evaluation.batches import keys_of
from rest_jax.evaluation.files import write_npz
from rest_jax.evaluation.fingerprint import weights_hash
from rest_jax.evaluation.records import RESULTS, Records

Tick = Callable[[int], Any]


def for_transfer(attack: Attack) -> Attack:
  """The attack without an end at the first success: more loss transfers better."""
  taken = inspect.signature(attack.function).parameters
  if 'stop_early' not in taken or 'stop_early' in attack.options:
    return attack
  return dataclasses.replace(attack, options={**attack.options, 'stop_early': False})


def images_at_a_time(batch_size: int, count: int) -> int:
  """The batch for `count` images where `batch_size` are asked for, that divides over devices."""
  return shared_batch(max(1, min(batch_size, count)))


def through(attack: Attack, attacked: Partial, random: bool, tick: Tick) -> Attack:
  """The attack on another model than the one that judges: the same one with usable gradients.

  Args:
    attack: what is asked for.
    attacked: as `protect.attackable` gives it.
    random: AutoAttack then is its version for random models.
    tick: called with the number of images after each batch.

  Returns:
    An attack for `attacks.evaluate`, of the same label.
  """
  if random and attack.function is AutoAttack and 'version' not in attack.options:
    attack = dataclasses.replace(attack, options={**attack.options, 'version': 'rand'})

  def on_attacked(model, images, labels, *, attacked, attack, key, norm, eps=None):
    del model
    # Not in the options: they pin the attack in its results, which the devices must not.
    found = attack.run(shared(attacked), images, labels, key=key, norm=norm, eps=eps, targets=None)
    tick(len(images))
    return found

  options = {'attacked': attacked, 'attack': attack}
  return dataclasses.replace(attack, function=on_attacked, options=options)


class Transferred:
  """The perturbations of one attack on the undefended model.

  Each image is attacked, one that the model errs on too, for a defence may get it right. They are
  kept as `<attack>_<norm>_<eps>/<first image>.npz`, a file a batch.
  """

  def __init__(
    self,
    model: Partial,
    attack: Attack,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: jax.Array,
    batch_size: int,
    directory: Path | None,
    model_id: str | None = None,
  ):
    """Opens what is there; makes nothing yet.

    Args:
      model: the undefended one.
      attack: how.
      images: float32 (N, H, W, C).
      labels: integers (N,).
      key: one PRNG key; image i uses `fold_in(key, i)`.
      batch_size: images at a time.
      directory: where they are kept; None for in memory.
      model_id: the user's word for the model.

    Raises:
      UserError: the directory is another model's, or was made with other settings.
    """
    self.attack = for_transfer(attack)
    self._model, self._images, self._labels = model, images, labels
    self._key, self._size, self._directory = key, batch_size, directory
    self._rows = {_name(image): row for row, image in enumerate(images)}
    self._kept: dict[RunName, np.ndarray] = {}
    self._source = weights_hash(model) if model_id is None else model_id
    if directory is not None:
      pinned = fingerprint(model, images.shape[1:], batch_size, model_id)
      Records(directory / RESULTS, self._settings(), model=pinned)

  def runs(self, threats: Sequence[Any]) -> list[RunName]:
    """One a radius; of a minimum-norm attack one a norm."""
    free = self.attack.minimum_norm
    return list(
      dict.fromkeys(
        RunName(self.attack.label, t.norm, None if free else float(t.eps)) for t in threats
      )
    )

  def images(self, run: RunName, tick: Tick = lambda count: None) -> np.ndarray:
    """The adversarial images of a run, float32 (N, H, W, C); made where they are missing.

    Raises:
      UserError: a file is damaged or of other images, or cannot be written.
    """
    if run not in self._kept:
      # What lies on disk is held in memory one run at a time.
      others = {} if self._directory is not None else self._kept
      self._kept = {**others, run: self._make(run, tick)}
    return self._kept[run]

  def replay(self) -> Attack:
    """An attack that asks nothing: it hands out what was made, for `attacks.evaluate`."""
    options = {'source': self._source, 'attack': self.attack}
    return dataclasses.replace(self.attack, function=self._hand_out, options=options)

  def _hand_out(
    self, model, images, labels, *, source, attack, norm, eps=None
  ) -> tuple[np.ndarray, np.ndarray]:
    del model, labels, source
    found = self.images(RunName(attack.label, norm, None if attack.minimum_norm else eps))
    rows = [self._rows[_name(image)] for image in images]
    return found[rows], np.zeros(len(rows), np.int64)

  def _settings(self) -> dict[str, Any]:
    return {
      'image_shape': self._images.shape[1:],
      'attack': self.attack.describe(),
      'seed': np.asarray(jax.random.key_data(self._key)).ravel().tolist(),
    }

  def _make(self, run: RunName, tick: Tick) -> np.ndarray:
    adv = np.array(self._images)
    done = np.zeros(len(adv), bool)
    folder = None if self._directory is None else self._directory / run.stem
    for path in sorted(folder.glob('[!.]*.npz')) if folder else ():
      self._read(path, adv, done)
    left = np.flatnonzero(~done)
    for first in range(0, len(left), self._size):
      rows = left[first : first + self._size]
      adv[rows] = self._attack_batch(run, rows)
      if folder is not None:
        marks = self._marks(rows)
        write_npz(folder / f'{rows[0]:010d}.npz', images=adv[rows], index=rows, pixels=marks)
      tick(len(rows))
    return adv

  def _attack_batch(self, run: RunName, rows: np.ndarray) -> np.ndarray:
    """Attacks images, filled up to a batch with copies of the first."""
    at = np.concatenate([rows, np.full(self._size - len(rows), rows[0], rows.dtype)])
    images, labels = self._images[at], self._labels[at].astype(np.int32)
    keys = keys_of(self._key, at)
    adv, _ = self.attack.run(
      shared(self._model), images, labels, key=keys, norm=run.norm, eps=run.eps, targets=None
    )
    return adv[: len(rows)]

  def _read(self, path: Path, adv: np.ndarray, done: np.ndarray) -> None:
    try:
      with np.load(path) as file:
        index, found, marks = file['index'], file['images'], file['pixels']
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
      raise UserError(f'{path} is damaged ({error}); remove it to make it again') from error
    known = index < len(adv)
    index, found, marks = index[known], found[known], marks[known]
    if not np.array_equal(self._marks(index), marks):
      raise UserError(f'{path} was made of other images or labels; give another output_dir')
    adv[index], done[index] = found, True

  def _marks(self, rows: np.ndarray) -> np.ndarray:
    """A checksum of each image and its label, uint32."""
    sums = [zlib.crc32(self._images[row].tobytes(), int(self._labels[row])) for row in rows]
    return np.asarray(sums, np.uint32)


def _name(image: np.ndarray) -> bytes:
  return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
