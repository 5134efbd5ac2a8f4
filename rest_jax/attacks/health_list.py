"""What each health check is raised by, and what helps; `docs/attacks.md` shows the same table."""

from __future__ import annotations

from typing import NamedTuple

from rest_jax.attacks import health_probe as probe

RANDOM_CHANGE = 1e-4  # relative change of logits, as in the authors' AutoAttack
BATCH_CHANGE = 1e-2  # leaves room for bfloat16 in another order of rows
LOSS_RISE = 1e-3  # relative; less is no rise
HELD_AT_GREY = 0.05  # robust accuracy at the radius where every image can become grey
BLACK_BOX_GAIN = 0.002  # share of images, as in the authors' AutoAttack
SOFTMAX_SLACK = 1e-5


class Explanation(NamedTuple):
  """When a check is raised, and what helps."""

  raised_if: str
  what_to_do: str


CHECKS: dict[str, Explanation] = {
  'softmax_output': Explanation(
    'every output is in [0, 1] and the outputs of each image sum to 1',
    'return logits, the values before the softmax: after it gradients vanish in rounding and the '
    'DLR loss is not what it should be',
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
    f'from {probe.FEW_STEPS} to {probe.MANY_STEPS} gradient steps neither the robust accuracy '
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
    f'over {HELD_AT_GREY:.0%} of the images withstand {probe.GREY_STEPS} gradient steps at radius '
    f'{probe.GREY_RADIUS} in Linf (within L2 radius 0.5 sqrt(d) and L1 radius 0.5 d, d values an '
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
