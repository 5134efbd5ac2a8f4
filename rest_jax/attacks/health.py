"""Health checks: signs that an evaluation says more about the attack than about the model.

After Carlini et al., "On evaluating adversarial robustness" (2019), Croce & Hein, "Reliable
evaluation of adversarial robustness" (2020), and Pintor et al., "Indicators of attack failure"
(2022). A raised check does not prove the evaluation wrong, nor does silence prove it right.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks.ball import furthest, project, random_start, usable
from rest_jax.attacks.losses import Loss, fooled, margin
from rest_jax.attacks.queries import (
  PROBABLE_SPREAD,
  ask,
  fold_each,
  is_random,
  logits_once,
  logits_traced_anew,
  output_form,
)
from rest_jax.attacks.record import Record, RunName, at_radius
from rest_jax.attacks.threat import Threat
from rest_jax.evaluation.batches import Chunk, keys_of
from rest_jax.inputs import Norm
from rest_jax.ops.platform import jit
from rest_jax.text import percent, plural, radius_text

FEW_STEPS, MANY_STEPS = 1, 20
GREY_STEPS = 50
GREY_RADIUS = 0.5  # Linf; every image can become plain grey, whatever it showed


class Sample(NamedTuple):
  """Images that the model is probed with, filled up to a batch.

  Attributes:
    images: float32 (B, H, W, C).
    labels: int32 (B,).
    keys: PRNG keys (B,).
    counts: bool (B,), True where the image is no filler and classified correctly.
    real: bool (B,), True where the image is no filler.
  """

  images: jax.Array
  labels: jax.Array
  keys: jax.Array
  counts: np.ndarray
  real: np.ndarray


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


class Held(NamedTuple):
  """How a short attack ended.

  Attributes:
    accuracy: share of the counted images that are still classified correctly.
    loss: their mean margin, the highest other logit less the label's; NaN where one of them is.
    count: number of counted images.
    flat: share of images whose first gradient, at the random start, is 0.
    broken: share of images whose first gradient is not finite.
  """

  accuracy: float
  loss: float
  count: int
  flat: float
  broken: float


def short_attack(
  model: Partial,
  sample: Sample,
  norm: Norm,
  eps: float,
  steps: int,
  start: float | None = None,
  until_fooled: bool = False,
) -> Held:
  """Steepest ascent on cross-entropy from a random start, its last image judged.

  Steps shrink from about half the radius to nothing. Steps and radii are data: one compiled form
  does for all of them.

  Args:
    model: images to logits.
    sample: what to attack.
    norm: of the ball.
    eps: its radius.
    steps: gradient steps.
    start: radius of the ball that the start is drawn from; eps by default. With the same one, a
      larger ball gives an attack only what its gradients do with it.
    until_fooled: end as soon as no counted image is classified correctly. The accuracy is 0 then,
      and the margin that of a shorter attack.

  Returns:
    How it ended.
  """
  data = (sample.images, sample.labels, sample.keys, sample.counts)
  radii = np.float32(eps), np.float32(eps if start is None else start)
  adv, *first, cut = _ascend(model, *data, *radii, np.int32(steps), until_fooled, norm)
  held = _judged(model, sample, adv, *first)
  if held.accuracy > 0 and cut:
    # A random model may have been wrong for a moment: what was cut short says nothing of it.
    return short_attack(model, sample, norm, eps, steps, start)
  return held


def _judged(model: Partial, sample: Sample, adv, flat, broken) -> Held:
  logits = logits_once(model, adv, sample.keys)
  found = *_outcome(logits, sample.labels), flat, broken
  wrong, losses, flat, broken = jax.device_get(found)
  counts = sample.counts
  # Where no image is classified correctly, all of them show the gradients.
  shown = counts if counts.any() else sample.real
  shares = float(flat[shown].mean()), float(broken[shown].mean())
  if not counts.any():
    return Held(float('nan'), float('nan'), 0, *shares)
  accuracy, loss = float((~wrong)[counts].mean()), float(losses[counts].mean())
  return Held(accuracy, loss, int(counts.sum()), *shares)


@jit
def _outcome(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  return fooled(logits, labels, None, False), margin(logits, labels)


@functools.partial(jit, static_argnames=('norm',))
def _ascend(model, images, labels, keys, counted, eps, start, steps, until_fooled, norm):
  loss_fn = Loss('ce', labels)

  def step(carry):
    i, delta, flat, broken, _ = carry
    answer = ask(model, images + delta, loss_fn, fold_each(keys, i))
    gradient = answer.gradient
    axes = tuple(range(1, gradient.ndim))
    flat = jnp.where(i == 0, jnp.all(gradient == 0, axis=axes), flat)
    broken = jnp.where(i == 0, ~jnp.all(jnp.isfinite(gradient), axis=axes), broken)
    part = jnp.float32(i) / jnp.maximum(steps, 1).astype(jnp.float32)
    move = furthest(
      usable(gradient), jnp.clip(images + delta, 0, 1), norm, eps * (0.52 - 0.5 * part)
    )
    wrong = fooled(answer.logits, labels, None, False)
    done = until_fooled & (wrong | ~counted).all()
    moved = jnp.where(done, delta, project(delta + move, images, norm, eps))
    return i + 1, moved, flat, broken, done

  none = jnp.zeros(labels.shape, bool)
  first = (jnp.int32(0), random_start(keys, images, norm, start), none, none, jnp.bool_(False))
  _, delta, *found = lax.while_loop(lambda c: (c[0] < steps) & ~c[-1], step, first)
  return jnp.clip(images + delta, 0, 1), *found


def change_with_company(
  model: Partial, images: jax.Array, keys: jax.Array, first: np.ndarray, real: np.ndarray
) -> float:
  """How much logits change with the rest of the batch: in another order, with half of it replaced.

  Args:
    model: images to logits.
    images: float32 (B, H, W, C); one alone is put beside another.
    keys: PRNG keys (B,).
    first: logits (B, K) of the batch as it is.
    real: bool (B,), which images count.

  Returns:
    The largest `relative_change`.
  """
  turned = np.asarray(logits_once(model, images[::-1], keys[::-1]))[::-1]
  changes = [relative_change(first[real], turned[real])]
  if len(images) == 1:
    pair = jnp.concatenate([images, 1 - images])
    other = np.asarray(logits_once(model, pair, jnp.concatenate([keys, keys])))[:1]
    return max(changes[0], relative_change(first, other))
  for half in (0, 1):
    kept = np.arange(len(images)) % 2 == half
    company = jnp.where(kept[:, None, None, None], images, 1 - images)
    other = np.asarray(logits_once(model, company, keys))
    changes.append(relative_change(first[real & kept], other[real & kept]))
  return max(changes)


def relative_change(first: np.ndarray, second: np.ndarray) -> float:
  """Largest distance (L2) of two rows of logits (N, K), over the larger one's length.

  NaN where both are not finite counts as no change, where only one is as infinite.
  """
  finite = np.isfinite(first).all(axis=1), np.isfinite(second).all(axis=1)
  if (finite[0] != finite[1]).any():
    return float('inf')
  a, b = (x[finite[0]].astype(np.float64) for x in (first, second))
  length = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
  change = np.linalg.norm(a - b, axis=1) / np.maximum(length, 1e-30)
  return float(change.max(initial=0.0))


RANDOM_CHANGE = 1e-4  # relative change of logits, as in the authors' AutoAttack
BATCH_CHANGE = 1e-2  # leaves room for bfloat16 in another order of rows
LOSS_RISE = 1e-3  # relative; less is no rise
HELD_AT_GREY = 0.05  # robust accuracy at the radius where every image can become grey
BLACK_BOX_GAIN = 0.002  # share of images, as in the authors' AutoAttack


class Explanation(NamedTuple):
  """When a check is raised, and what helps."""

  raised_if: str
  what_to_do: str


CHECKS: dict[str, Explanation] = {
  'softmax_output': Explanation(
    'every output is in [0, 1] and the outputs of each image sum to 1, to the rounding of float32, '
    'or to that of bfloat16 if those of other images do so too',
    'return logits, the values before the softmax: after it gradients vanish in rounding and the '
    'DLR loss is not what it should be',
  ),
  'probability_output': Explanation(
    'one output alone, or several that do not sum to 1, look like probabilities: on the images, '
    'their negatives, black and white, grey and noise they are all in [0, 1], and some are '
    f'{PROBABLE_SPREAD} apart or exactly 0 or 1',
    'if a sigmoid is applied already, return what it is applied to, or wrap the model in '
    'jax.scipy.special.logit: outputs are read as logits, and as such one probability is always '
    'class 1; if these are logits, which the values alone cannot tell, leave them',
  ),
  'random_output': Explanation(
    f'the same images evaluated again give other logits (relative change over {RANDOM_CHANGE:g}), '
    'with another key where the model takes one, or in a program traced anew',
    'average over chance: attacks.eot, and auto_attack with version="rand"; draw from keys that '
    'are arguments, because chance from NumPy is frozen when a function is compiled',
  ),
  'batch_dependence': Explanation(
    'images give other logits in another order, or where half of the batch is replaced by other '
    f'images (relative change over {BATCH_CHANGE:g})',
    'make what one image gets independent of the others: batch norm in evaluation mode, no '
    'statistics over the batch',
  ),
  'zero_gradients': Explanation(
    'for any image the gradient of the loss at a random start is exactly 0',
    'attack with a margin loss (apgd_dlr, apgd_t); if a step of the model is not differentiable '
    '(rounding, quantisation), attack through attacks.bpda, and trust square most',
  ),
  'nan_gradients': Explanation(
    'for any image the gradient of the loss at a random start is not finite',
    'find the operation (jax.config.update("jax_debug_nans", True)); usually a square root, norm '
    'or logarithm at 0, or an overflow',
  ),
  'steps_do_not_help': Explanation(
    f'from {FEW_STEPS} to {MANY_STEPS} gradient steps neither the robust accuracy '
    'falls nor the mean margin rises, though images are left to fool',
    'the gradients do not lead uphill (masked gradients): try apgd_dlr, more restarts, '
    'attacks.bpda for what is not differentiable, and square',
  ),
  'radius_does_not_help': Explanation(
    'at twice the radius neither the robust accuracy falls nor the mean margin rises, though '
    'images are left to fool',
    'as for steps_do_not_help: a larger ball holds the smaller one, so only the attack can be to '
    'blame',
  ),
  'survives_grey_radius': Explanation(
    f'over {HELD_AT_GREY:.0%} of the images withstand {GREY_STEPS} gradient steps at radius '
    f'{GREY_RADIUS} in Linf (within L2 radius 0.5 sqrt(d) and L1 radius 0.5 d, d values an '
    'image), where every image can become plain grey',
    'nothing is robust there: the gradients are masked; attack through attacks.bpda or attacks.eot '
    'whatever hides them',
  ),
  'black_box_wins': Explanation(
    f'more than {BLACK_BOX_GAIN:.1%} of the images withstand every white-box attack of a radius '
    'and are fooled by a black-box one',
    'the white-box attacks miss something: more steps and restarts, another loss, an adaptive '
    'attack; and a longer square',
  ),
  'undefined_logits': Explanation(
    'the model gives logits that are not numbers for an image that an attack made; it counts as '
    'not robust there',
    'find the operation (jax.config.update("jax_debug_nans", True)); usually a square root, norm '
    'or logarithm at 0, or an overflow',
  ),
  'out_of_bounds': Explanation(
    'an attack returned an image farther away than the radius, by more than rounding, or with a '
    'pixel outside [0, 1] or not a number; it does not count as a success',
    'project what the attack returns: attacks.finish',
  ),
  'unconfirmed_success': Explanation(
    'an image that fooled the model did not do so when it was evaluated again, in another order of '
    'the batch and, of a random model, with other keys',
    'see random_output and batch_dependence; count only what holds on average over several '
    'evaluations',
  ),
}


def table() -> str:
  """All checks as a Markdown table, as `docs/attacks.md` has it."""
  lines = ['| check | raised if | what to do |', '|---|---|---|']
  lines += [
    f'| `{name}` | {check.raised_if} | {check.what_to_do} |' for name, check in CHECKS.items()
  ]
  return '\n'.join(lines) + '\n'


@dataclasses.dataclass(frozen=True)
class HealthCheck:
  """One check of an evaluation.

  Attributes:
    name: one of `CHECKS`.
    raised: whether something looks wrong.
    evidence: what was measured.
    raised_if: the condition.
    what_to_do: what helps.
  """

  name: str
  raised: bool
  evidence: str
  raised_if: str
  what_to_do: str


def _check(name: str, raised: bool, evidence: str) -> HealthCheck:
  return HealthCheck(name, bool(raised), evidence, *CHECKS[name])


def check_model_health(model: Partial, sample: Sample, threat: Threat) -> list[HealthCheck]:
  """Probes a model: some evaluations, and short attacks of 1, 20 and 50 steps.

  Args:
    model: images to logits.
    sample: images to probe with.
    threat: the radius at which steps and radius are compared.

  Returns:
    One check each of what can be said from the model alone.
  """
  return [*_check_outputs(model, sample), *_check_gradients(model, sample, threat)]


def _check_outputs(model: Partial, sample: Sample) -> list[HealthCheck]:
  images, keys, real = sample.images, sample.keys, sample.real
  other = fold_each(keys, 1)
  first = np.asarray(logits_once(model, images, keys))
  again = np.asarray(logits_once(model, images, other))
  anew = np.asarray(logits_traced_anew(model, images, keys))
  change = max(relative_change(first[real], x[real]) for x in (again, anew))
  company = change_with_company(model, images, keys, first, real)
  # Where the same batch does not give the same, another tells nothing.
  random = change > RANDOM_CHANGE
  takes = ' with another key' if is_random(model) else ''

  def probe(other: np.ndarray) -> np.ndarray:
    return np.asarray(logits_once(model, other, keys))[real]

  form = output_form(probe, np.asarray(images), first[real])
  return [
    _check('softmax_output', form.softmax, form.sums),
    _check('probability_output', form.probabilities, form.values),
    _check('random_output', random, f'relative change of logits{takes} {change:.3g}'),
    _check(
      'batch_dependence',
      company > BATCH_CHANGE and not random,
      'not to be told from chance' if random else f'relative change of logits {company:.3g}',
    ),
  ]


def _check_gradients(model: Partial, sample: Sample, threat: Threat) -> list[HealthCheck]:
  few = short_attack(model, sample, threat.norm, threat.eps, FEW_STEPS)
  checks = [
    _check('zero_gradients', few.flat > 0, f'{percent(few.flat, 2, "%")} of the images'),
    _check('nan_gradients', few.broken > 0, f'{percent(few.broken, 2, "%")} of the images'),
  ]
  if not few.count:
    none = 'no image is classified correctly'
    names = ('steps_do_not_help', 'radius_does_not_help', 'survives_grey_radius')
    return checks + [_check(name, False, none) for name in names]
  return checks + _check_progress(model, sample, threat, few) + [_check_grey(model, sample)]


def _check_progress(model: Partial, sample: Sample, threat: Threat, few: Held) -> list[HealthCheck]:
  """More steps, and a larger radius, must lead somewhere."""
  names = ('steps_do_not_help', 'radius_does_not_help')
  if threat.eps == 0:
    return [_check(name, False, 'radius 0') for name in names]
  norm, eps = threat.norm, threat.eps
  many = short_attack(model, sample, norm, eps, MANY_STEPS, until_fooled=True)
  wide = short_attack(model, sample, norm, 2 * eps, MANY_STEPS, start=eps, until_fooled=True)
  # Only where the wider ball's attack fails are margins compared: those of all steps.
  if wide.accuracy > 0 and not many.accuracy:
    many = short_attack(model, sample, norm, eps, MANY_STEPS)
  steps = f'{FEW_STEPS} and up to {MANY_STEPS} steps'
  radii = f'radius {radius_text(eps)} and {radius_text(2 * eps)}'
  return [
    _check(names[0], _no_gain(few, many), _compared(steps, few, many)),
    _check(names[1], _no_gain(many, wide), _compared(radii, many, wide)),
  ]


def _no_gain(weak: Held, strong: Held) -> bool:
  falls = strong.accuracy < weak.accuracy
  rises = strong.loss > weak.loss + LOSS_RISE * abs(weak.loss)
  return strong.accuracy > 0 and not (falls or rises)


def _compared(what: str, weak: Held, strong: Held) -> str:
  return (
    f'{what}: robust accuracy {percent(weak.accuracy, 2, "%")} and '
    f'{percent(strong.accuracy, 2, "%")}, mean margin {weak.loss:.4g} and {strong.loss:.4g}, '
    f'{plural(weak.count, "image")}'
  )


def _check_grey(model: Partial, sample: Sample) -> HealthCheck:
  held = short_attack(model, sample, 'linf', GREY_RADIUS, GREY_STEPS, until_fooled=True)
  evidence = f'robust accuracy {percent(held.accuracy, 2, "%")} of {plural(held.count, "image")}'
  return _check('survives_grey_radius', held.accuracy > HELD_AT_GREY, evidence)


def check_results_health(
  records: Mapping[RunName, Mapping[int, Record]], black_box: Collection[str]
) -> list[HealthCheck]:
  """Checks what the attacks found.

  Args:
    records: by run and image index.
    black_box: labels of the attacks that use no gradient of the model.

  Returns:
    One check each of what can be said from the results.
  """
  found = [record for run in records.values() for record in run.values()]
  fooled = [record for record in found if record.success and record.correct]
  lost = [record for record in fooled if not record.confirmed]
  outside = [record for record in found if not record.inside]
  attacked = [record for record in found if record.correct]
  undefined = [record for record in attacked if record.adversarial < 0 and record.inside]
  return [
    _check_black_box(records, black_box),
    _check('undefined_logits', bool(undefined), _counted(undefined, len(attacked), 'image')),
    _check('out_of_bounds', bool(outside), _counted(outside, len(found), 'image')),
    _check('unconfirmed_success', bool(lost), _counted(lost, len(fooled), 'success')),
  ]


def _counted(bad: Sequence[Record], count: int, what: str) -> str:
  text = f'{len(bad)} of {plural(count, what)}'
  if not bad:
    return text
  one = bad[0]
  return (
    f'{text}, {percent(len(bad) / count, 2, "%")}'
    + f', such as image {one.index} of {one.attack}, {one.norm} {one.distance:.6g} away'
  )


def _check_black_box(
  records: Mapping[RunName, Mapping[int, Record]], black_box: Collection[str]
) -> HealthCheck:
  gains = {}
  for norm, eps in sorted({(n.norm, n.eps) for n in records if n.eps is not None}):
    at = {
      n.attack: at_radius(found, n, eps)
      for n, found in records.items()
      if n.norm == norm and n.eps in (None, eps)
    }
    white = [found for attack, found in at.items() if attack not in black_box]
    black = [found for attack, found in at.items() if attack in black_box]
    if white and black:
      gains[f'{norm} {radius_text(eps)}'] = _gain(white, black)
  if not gains:
    return _check('black_box_wins', False, 'not both kinds of attack at one radius')
  where = max(gains, key=lambda name: gains[name])
  evidence = f'{percent(gains[where], 2, "%")} of the images at {where}'
  return _check('black_box_wins', gains[where] > BLACK_BOX_GAIN, evidence)


def _gain(white: Sequence[Mapping[int, Record]], black: Sequence[Mapping[int, Record]]) -> float:
  """Share of images that only the black-box attacks fooled."""
  common = set.intersection(*(set(found) for found in (*white, *black)))
  only = sum(
    all(found[i].robust for found in white) and any(found[i].success for found in black)
    for i in common
  )
  return only / max(len(common), 1)


def markdown(checks: Sequence[HealthCheck]) -> str:
  """The checks as a Markdown list, the raised ones with what to do."""
  lines = []
  for check in checks:
    mark = '**raised**' if check.raised else 'quiet'
    lines.append(f'- {check.name}: {mark}; {check.evidence}')
    if check.raised:
      lines.append(f'  Raised if {check.raised_if}. What to do: {check.what_to_do}.')
  return ''.join(line + '\n' for line in lines)
