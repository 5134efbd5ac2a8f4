"""AutoAttack: the standard measure of robustness, four attacks without parameters to set.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", arXiv 2003.01690, section 5 and appendix A; its L1 form from "Mind the
box", arXiv 2103.01208. The settings of each version are those of the published code
(github.com/fra31/auto-attack).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks import losses
from rest_jax.attacks.auto_pgd import APGD
from rest_jax.attacks.driver import Outcome, Runs, Target, attack_images, make_target
from rest_jax.attacks.fast_adaptive_boundary import FAB
from rest_jax.attacks.queries import is_random
from rest_jax.attacks.registry import register
from rest_jax.attacks.square_attack import Square
from rest_jax.attacks.threat import check_given, check_inputs
from rest_jax.errors import UserError
from rest_jax.inputs import NORMS, Norm, check_choice

VERSIONS = {
  'standard': ('apgd_ce', 'apgd_t', 'fab_t', 'square'),
  'plus': ('apgd_ce', 'apgd_dlr', 'fab', 'square', 'apgd_t', 'fab_t'),
  'rand': ('apgd_ce', 'apgd_dlr'),
}
# The order numbers their random numbers: an attack alone does what it does among others.
MEMBERS = ('apgd_ce', 'apgd_dlr', 'apgd_t', 'fab', 'fab_t', 'square')
# Draws of a random model that 'rand' averages a gradient over.
RAND_DRAWS = 20

Progress = Callable[[str, int, int], None]


class Record(NamedTuple):
  """What one attack of the cascade did.

  Attributes:
    attack: its name, of `MEMBERS`.
    attacked: images that were still correct before it.
    fooled: how many of them it fooled.
    robust_accuracy: share of all images that are correct after it.
    steps: steps taken, over all images.
    rows: that were stepped for it, those of idle slots too; `steps / rows` is the useful share.
    seconds: time it took, compilation included.
  """

  attack: str
  attacked: int
  fooled: int
  robust_accuracy: float
  steps: int
  rows: int
  seconds: float


class Report(NamedTuple):
  """What AutoAttack found.

  Attributes:
    images: float32 (N, H, W, C), adversarial where one was found, else the originals.
    clean_accuracy: before any attack.
    robust_accuracy: after all.
    correct: bool (N,), before any attack.
    robust: bool (N,), after all.
    fooled_by: for each image the name of the attack that fooled it, '' where none did.
    records: one an attack that ran, in order.
    queries: int64 (N,), forward passes that the attacks' steps took for each image.
    seconds: of all, compilation included.
  """

  images: jax.Array
  clean_accuracy: float
  robust_accuracy: float
  correct: np.ndarray
  robust: np.ndarray
  fooled_by: list[str]
  records: tuple[Record, ...]
  queries: np.ndarray
  seconds: float


@register('auto_attack', 'the number to report: APGD, FAB and Square in turn')
@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAttack:
  """The whole as a value; as `auto_attack`. It has no targets.

  Attributes:
    norm: 'linf', 'l2' or 'l1'.
    version: one of `VERSIONS`.
    attacks: names of `MEMBERS` in place of the version's, with its settings.
    query_batch: images in a batch, at most.
  """

  norms: ClassVar[tuple[str, ...]] = NORMS
  gradients: ClassVar[bool] = True
  minimum_norm: ClassVar[bool] = False

  norm: Norm = 'linf'
  version: str = 'standard'
  attacks: Sequence[str] | None = None
  query_batch: int | None = None

  def __post_init__(self):
    check_choice('version', self.version, tuple(VERSIONS))
    if self.attacks is not None:
      names = (self.attacks,) if isinstance(self.attacks, str) else tuple(self.attacks)
      for name in names:
        check_choice('attack', name, MEMBERS)
      if not names:
        raise UserError(f'no attacks; there are {", ".join(MEMBERS)}')
      object.__setattr__(self, 'attacks', names)

  def run(self, logits_fn: Any, images: Any, labels: Any, *, key: Any, eps: Any) -> Outcome:
    """Attacks images; see `auto_attack`."""
    report = self.report(logits_fn, images, labels, key=key, eps=eps)
    return Outcome(report.images, report.queries)

  def report(
    self,
    logits_fn: Any,
    images: Any,
    labels: Any,
    *,
    key: Any,
    eps: Any,
    progress: Progress | None = None,
  ) -> Report:
    """Attacks images; see `auto_attack_report`."""
    check_given(eps)
    inputs = check_inputs(logits_fn, images, labels, norm=self.norm, eps=eps)
    if self.version == 'rand':
      inputs = inputs._replace(model=_with_draws(inputs.model))
    inputs = inputs.within_range(self.norm)
    target = make_target('auto_attack', inputs, key, self.query_batch)
    names = tuple(VERSIONS[self.version] if self.attacks is None else self.attacks)
    return _cascade(target, names, self.norm, self.version, progress)


def auto_attack(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any,
  norm: Norm = 'linf',
  eps: Any,
  version: str = 'standard',
  attacks: Sequence[str] | None = None,
  query_batch: int | None = None,
  progress: Progress | None = None,
) -> jax.Array:
  """Adversarial images of AutoAttack: attacks, one after another, on what is still correct.

  Args:
    logits_fn: float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.
    images: floats (N, H, W, C) in [0, 1].
    labels: integers (N,).
    key: PRNG key; image i uses `fold_in(key, i)`.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius in units of [0, 1], a number or (N,); at 0 nothing is attacked, and infinity is no
      limit but [0, 1].
    version: 'standard', 'plus' or, for random models, 'rand'; `auto_attack_report` says what they
      are.
    attacks: names of `MEMBERS` in place of the version's, with its settings.
    query_batch: images in a batch, at most; 64 on a CPU and 256 elsewhere by default.
    progress: called with an attack's name and how many of its runs are over, of how many.

  Returns:
    float32 (N, H, W, C), in the ball and in [0, 1]: adversarial where an attack found one within
    the ball, else the originals.

  Raises:
    UserError: bad input; see `auto_attack_report`.
  """
  return auto_attack_report(
    logits_fn,
    images,
    labels,
    key=key,
    norm=norm,
    eps=eps,
    version=version,
    attacks=attacks,
    query_batch=query_batch,
    progress=progress,
  ).images


def auto_attack_report(
  logits_fn: Any,
  images: Any,
  labels: Any,
  *,
  key: Any,
  norm: Norm = 'linf',
  eps: Any,
  version: str = 'standard',
  attacks: Sequence[str] | None = None,
  query_batch: int | None = None,
  progress: Progress | None = None,
) -> Report:
  """Attacks, one after another, the images that are still classified correctly.

  Args:
    logits_fn: float32 images (B, H, W, C) in [0, 1] to logits (B, K), or a `Classifier`.
    images: floats (N, H, W, C) in [0, 1].
    labels: integers (N,).
    key: PRNG key; image i uses `fold_in(key, i)`.
    norm: 'linf', 'l2' or 'l1'.
    eps: radius in units of [0, 1], a number or (N,); at 0 nothing is attacked, and infinity is no
      limit but [0, 1].
    version: 'standard': APGD on cross-entropy, APGD on targeted DLR, FAB-T and Square. 'plus':
      these, APGD on DLR and FAB, with 5 restarts. 'rand', for random models (`attacks.eot`): APGD
      on cross-entropy and DLR with 20 draws a gradient.
    attacks: names of `MEMBERS` in place of the version's, with its settings.
    query_batch: images in a batch, at most, which bounds the memory; 64 on a CPU and 256 elsewhere
      by default. Where few images are left, smaller ones are compiled if they pay.
    progress: called with an attack's name and how many of its runs are over, of how many.

  Returns:
    The report. With fewer than four classes APGD-T follows the margin instead of targeted DLR, and
    APGD-DLR with two the margin instead of DLR, as these are not defined.

  Raises:
    UserError: bad input, an unknown version or attack, a model whose logits are not numbers before
      any attack, or a call inside jit, where it cannot run.
  """
  value = AutoAttack(norm=norm, version=version, attacks=attacks, query_batch=query_batch)
  return value.report(logits_fn, images, labels, key=key, eps=eps, progress=progress)


def _with_draws(model: Partial) -> Partial:
  """A random model whose gradients are means over as many draws as 'rand' takes."""
  if not is_random(model) or not hasattr(model.func, 'samples'):
    return model
  function: Any = dataclasses.replace(cast(Any, model.func), samples=RAND_DRAWS, average='loss')
  return Partial(function, *model.args, **model.keywords)


def _cascade(
  target: Target, names: tuple[str, ...], norm: Norm, version: str, progress: Progress | None
) -> Report:
  begin = time.perf_counter()
  correct = ~target.wrong_already()
  robust, adv = correct.copy(), target.images.copy()
  fooled_by, records = [''] * len(robust), []
  queries = np.zeros(len(robust), np.int64)
  for name in names:
    which = np.flatnonzero(robust & (target.eps > 0))
    if not len(which):
      break
    start = time.perf_counter()
    runs = member(name, norm, version, target.num_classes, is_random(target.model))
    found = attack_images(target, runs, which, progress=_named(progress, name))
    queries[which] += found.steps * runs[0].algorithm.queries_per_step
    hit = which[found.success]
    adv[hit], robust[hit] = found.adv[found.success], False
    for image in hit:
      fooled_by[image] = name
    seconds = time.perf_counter() - start
    steps = int(found.steps.sum())
    counts = (len(which), len(hit), _mean(robust), steps, found.rows)
    records.append(Record(name, *counts, seconds))
  return Report(
    images=jnp.asarray(adv),
    clean_accuracy=_mean(correct),
    robust_accuracy=_mean(robust),
    correct=correct,
    robust=robust,
    fooled_by=fooled_by,
    records=tuple(records),
    queries=queries,
    seconds=time.perf_counter() - begin,
  )


def member(
  name: str, norm: Norm, version: str, num_classes: int, random: bool = False
) -> tuple[Runs, ...]:
  """The runs of one of `MEMBERS`, with a version's settings, on a model that may be random."""
  number, plus = MEMBERS.index(name), version == 'plus'
  # In L1 the standard version begins with larger radii, restarts and takes fewer targets.
  l1 = norm == 'l1' and version == 'standard'
  others = num_classes - 1
  if name == 'apgd_t':
    loss = _first_loss(num_classes, random, 'dlr_targeted') if others > 2 else 'margin_targeted'
    attack = APGD(norm=norm, loss=loss, large_radii=l1)
    return (Runs(attack, num_targets=min(5 if l1 else 9, others), number=number),)
  if name.startswith('apgd'):
    first = _first_loss(num_classes, random, 'ce')
    loss = first if name == 'apgd_ce' else 'dlr' if num_classes > 2 else 'margin'
    return (
      Runs(APGD(norm=norm, loss=loss, large_radii=l1), 5 if plus or l1 else 1, number=number),
    )
  if name == 'fab_t':
    return (Runs(FAB(norm=norm, to_target=True), num_targets=min(9, others), number=number),)
  if name == 'fab':
    again = Runs(FAB(norm=norm, random_start=True), 4, number=number)
    return (
      (Runs(FAB(norm=norm), number=number), again)
      if plus
      else (Runs(FAB(norm=norm), number=number),)
    )
  return (Runs(Square(norm=norm, loss='margin', rescale=False), number=number),)


def _first_loss(num_classes: int, random: bool, alone: str) -> str:
  """That of APGD on cross-entropy and on targeted DLR, as one where they can be one program.

  A random model's gradients of the two are averaged over its draws in different ways.
  """
  return alone if random or num_classes < 4 else losses.CE_OR_DLR


def _named(progress: Progress | None, name: str):
  return None if progress is None else lambda done, count: progress(name, done, count)


def _mean(flags: np.ndarray) -> float:
  return float(np.mean(flags)) if len(flags) else float('nan')
