"""Transfer: perturbations made on one model, evaluated on another; no gradient of the latter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax import text
from rest_jax.attacks.cases import Case, Made, pieces_of
from rest_jax.attacks.registry import Attack, as_attack
from rest_jax.attacks.threat import Threat, check_host, check_inputs, check_key
from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.evaluation import runner
from rest_jax.evaluation.batches import Batch, Chunk, Images, chunks
from rest_jax.evaluation.intervals import Interval, accuracy_interval
from rest_jax.evaluation.records import Records
from rest_jax.inputs import check_count


def transfer_attack(
  source_fn: Any, attack: str | Attack = 'mi_fgsm', *, label: str = 'transfer'
) -> Attack:
  """An attack on any model with perturbations that were made on another one.

  It asks nothing of the model under attack: black-box. For `evaluate`, beside square.

  Args:
    source_fn: the model that the perturbations are made on: images (B, H, W, C) to logits (B, K).
    attack: how; one that does not stop at the first success transfers better.
    label: names it in results.

  Returns:
    The attack.

  Raises:
    UserError: an unknown attack, or no model.
  """
  base = _within_radius(attack)
  options = {'source': as_function(source_fn), 'attack': base}
  return Attack(label, _on_source, options, black_box=True, norms=base.norms)


def _within_radius(attack: str | Attack) -> Attack:
  base = as_attack(attack)
  if base.minimum_norm:
    raise UserError(
      f'{base.label} ends where one model just fails, which does not transfer; '
      'give an attack within a radius, such as mi_fgsm'
    )
  return base


def _on_source(
  model: Any, images: Any, labels: Any, *, source: Any, attack: Attack, key, norm, eps, targets=None
) -> tuple[np.ndarray, np.ndarray]:
  del model  # it is asked nothing
  adv, _ = attack.run(source, images, labels, key=key, norm=norm, eps=eps, targets=targets)
  return adv, np.zeros(len(adv), np.int64)


class Transfer(NamedTuple):
  """Perturbations of one model, evaluated on another.

  Attributes:
    images: float32 (N, H, W, C), the adversarial images.
    correct: bool (N,), the target classifies the image itself correctly.
    fooled_source: bool (N,), of the images that the source classifies correctly.
    fooled_target: bool (N,), of the images that the target classifies correctly.
    rate: share fooled of the images that the target classifies correctly, with its interval.
  """

  images: np.ndarray
  correct: np.ndarray
  fooled_source: np.ndarray
  fooled_target: np.ndarray
  rate: Interval


def transfer(
  source_fn: Any,
  target_fn: Any,
  images: Any,
  labels: Any,
  *,
  threat: Threat,
  key: jax.Array,
  attack: str | Attack = 'mi_fgsm',
  targets: Any = None,
  batch_size: int = 128,
  confidence: float = 0.95,
) -> Transfer:
  """Attacks one model with perturbations that were made on another.

  Args:
    source_fn: the model that the perturbations are made on.
    target_fn: the model that they are tried on; it is asked for no gradient.
    images: as in `transfer_matrix`, and so are the other arguments.
    labels: integers (N,).
    threat: norm and radius.
    key: PRNG key.
    attack: how.
    targets: classes to reach (N,), for a targeted threat.
    batch_size: images at a time.
    confidence: of the rate's interval.

  Returns:
    What became of the images.

  Raises:
    UserError: bad input.
  """
  work = _Work(attack, threat, key, images, labels, targets, batch_size)
  source, target = as_function(source_fn), as_function(target_fn)
  found = work.run([source], [source, target])
  correct, fooled = found.correct[1], found.fooled[0]
  rate = accuracy_interval(int(fooled[1].sum()), int(correct.sum()), confidence)
  return Transfer(found.adv[0], correct, fooled[0], fooled[1], rate)


class TransferMatrix(NamedTuple):
  """Every model attacked with the perturbations of every model.

  Attributes:
    names: of the models, (M,).
    clean_accuracy: float64 (M,).
    robust_accuracy: float64 (M, M), source by target: share of all images that the target
      classifies correctly, clean and perturbed.
    success: float64 (M, M), source by target: share fooled of the images that the target
      classifies correctly; NaN where there is none. The diagonal is the white-box attack.
  """

  names: tuple[str, ...]
  clean_accuracy: np.ndarray
  robust_accuracy: np.ndarray
  success: np.ndarray

  def markdown(self) -> str:
    """Success by source (row) and target (column)."""
    names = [text.markdown(name) for name in self.names]
    lines = ['| made on \\ evaluated on | ' + ' | '.join(names) + ' |']
    lines.append('|---' * (len(self.names) + 1) + '|')
    for name, row in zip(names, self.success, strict=True):
      lines.append(f'| {name} | ' + ' | '.join(text.percent(value, 2, '%') for value in row) + ' |')
    return '\n'.join(lines) + '\n'


def transfer_matrix(
  models: Mapping[str, Any],
  images: Any,
  labels: Any,
  *,
  threat: Threat,
  key: jax.Array,
  attack: str | Attack = 'mi_fgsm',
  targets: Any = None,
  batch_size: int = 128,
) -> TransferMatrix:
  """Attacks every model with the perturbations of every model.

  Args:
    models: name to function of images (B, H, W, C) to logits (B, K), all of the same K.
    images: floats (N, H, W, C) in [0, 1].
    labels: integers (N,).
    threat: norm and radius.
    key: PRNG key; image i uses `fold_in(key, i)`.
    attack: name of `list_attacks()` or an `Attack`, within a radius.
    targets: classes to reach (N,), for a targeted threat: an image counts as fooled there only if
      the target's answer is that class.
    batch_size: images at a time; the last batch is filled up.

  Returns:
    The matrix.

  Raises:
    UserError: bad input, or no models.
  """
  if not models:
    raise UserError('transfer_matrix needs models: a dictionary of name and function')
  work = _Work(attack, threat, key, images, labels, targets, batch_size)
  functions = [as_function(model) for model in models.values()]
  found = work.run(functions, functions)
  right = found.correct.sum(axis=1)
  success = np.where(right, found.fooled.sum(axis=2) / np.maximum(right, 1), np.nan)
  robust = (found.correct & ~found.fooled).mean(axis=2)
  return TransferMatrix(tuple(models), found.correct.mean(axis=1), robust, success)


class _Found(NamedTuple):
  """For M sources, T judges and N images.

  Attributes:
    adv: float32 (M, N, H, W, C).
    correct: bool (T, N), the image itself is classified correctly.
    fooled: bool (M, T, N), it was and the attacker's goal is reached.
  """

  adv: np.ndarray
  correct: np.ndarray
  fooled: np.ndarray


class _Work:
  """Checked arguments of a transfer."""

  def __init__(self, attack, threat: Threat, key, images, labels, targets, batch_size: int):
    """Checks what does not depend on a model; see `transfer_matrix`."""
    check_count('batch_size', batch_size)
    check_host('transfer', images, labels, targets, key)
    if threat.targeted is not (targets is not None):
      raise UserError('a targeted threat needs targets, an untargeted one has none')
    if not np.size(labels):
      raise UserError('there are no images to attack')
    self._attack, self._threat, self._key = _within_radius(attack), threat, check_key(key)
    self._given = (images, labels, targets)
    self._size = min(batch_size, np.size(labels))

  def run(self, sources: Sequence[Partial], judges: Sequence[Partial]) -> _Found:
    """Attacks every source once, and asks every judge."""
    images, labels, targets = self._given
    for model in (*sources, *judges):
      threat = self._threat
      inputs = check_inputs(
        model, images, labels, norm=threat.norm, eps=threat.eps, targets=targets
      )
      self._classes = inputs.num_classes
    (chunk,) = chunks(images, labels, targets, None)
    correct, made = [], [self._made(source, chunk) for source in sources]
    fooled = np.zeros((len(sources), len(judges), len(chunk.images)), bool)
    for column, model in enumerate(judges):
      (piece,) = pieces_of(model, [chunk], self._key, self._size, self._classes)
      correct.append(piece.arrays['clean'] == chunk.labels)
      for row, source in enumerate(sources):
        case = Case(f'{row} on {column}', self._attack, self._threat, source, model)
        fooled[row, column] = self._judge(case, piece, made[row])
    images = np.asarray([one.images(self._threat) for one in made])
    return _Found(images, np.asarray(correct), fooled & np.asarray(correct))

  def _made(self, source: Partial, chunk: Chunk) -> Made:
    return Made(source, self._attack, chunk, key=self._key, size=self._size)

  def _judge(self, case: Case, piece: Images, made: Made) -> list[bool]:
    """Which images of the source fool the judge."""

    def work(case: Case, batch: Batch, device: Any) -> dict[str, Any]:
      del device
      return case.judge(batch, *made.hand_out(case, batch), self._key)

    records = Records(None, {})
    runner.run([case], [piece], records, work, size=self._size, devices=(None,))
    return records.column(case.label, 'success', piece.indices)
