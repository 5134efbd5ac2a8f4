"""Adversarial training: the published losses, and the attack in evaluations.

Perturbations are in pixels, before normalisation, and images + perturbation stay in [0, 1]. Each
device attacks its own images. The kinds (`config.adversarial.kind`), with the step size that
`step_size = 0` stands for:

  pgd     Cross entropy on perturbed images alone; the ascent is on the training loss itself, label
          smoothing included. Madry et al., 2018 (arXiv 1706.06083), equation 2.1. 2.5 eps / steps.
  fast    The same after one step from a random start. Wong et al., 2020 (2001.03994). 1.25 eps.
  free    The perturbation and the weights move by the same backward pass; each batch is replayed
          `replays` times, and the perturbation goes on to the next batch. Shafahi et al., 2019
          (1904.12843), algorithm 1. eps. The batch norm is in training mode throughout.
  trades  `losses.trades_loss`; the ascent is on the KL divergence, from 0.001 N(0, 1) (projected).
          Zhang et al., 2019 (1901.08573), algorithm 1. 7/31 eps, which is 0.007 at 0.031.
  mart    `losses.mart_loss`; the ascent is on the cross entropy, from the same start. Wang et al.,
          2020. 7/31 eps.

While it is attacked the network is in the mode of `batch_norm`: 'eval', or 'train', with the
batch's own statistics and the dropout that the update then uses. Weights are updated in training
mode: where images and perturbed images are both looked at, each pass has its own batch statistics,
and the running ones see first the images, then the perturbed ones, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rest_jax.attacks.ball import norm_of, normalize, per_image, random_start
from rest_jax.attacks.losses import log_odds
from rest_jax.attacks.projected_gradient import ascent, pgd_delta
from rest_jax.data.device import normalise
from rest_jax.train import freezing
from rest_jax.train.config import Config
from rest_jax.train.gradients import Aux, GradientFunction, Rows
from rest_jax.train.losses import (
  hit_rate,
  kl_divergence,
  mart_loss,
  soft_cross_entropy,
  trades_loss,
)

_NOISE = 0.001  # deviation of the start of TRADES and MART
_BETA = {'trades': 6.0, 'mart': 5.0}

# (params, stats, images in [0, 1], key, train) -> (logits, new statistics)
Forward = Callable[[Any, Any, jax.Array, jax.Array, bool], tuple[jax.Array, Any]]


def step_size(adversarial: Config) -> float:
  """The length of a step of the ascent, in the norm and for images in [0, 1]."""
  kind, eps = adversarial.kind, adversarial.eps
  own = {'pgd': 2.5 * eps / adversarial.steps, 'fast': 1.25 * eps, 'free': eps}
  return adversarial.step_size or own.get(kind, 7 / 31 * eps)


def adversarial_gradients(model: nn.Module, config: Config) -> GradientFunction:
  """Builds the gradient function of the config's adversarial loss, see `gradients`.

  Args:
    model: Linen module.
    config: the whole experiment configuration; `adversarial.kind` is not empty.

  Returns:
    A gradient function on images in [0, 1].
  """
  forward = _make_forward(model, config)
  if config.adversarial.kind == 'free':
    return _free_gradients(forward, config.adversarial)
  outer = jax.value_and_grad(_make_loss(forward, config.adversarial), has_aux=True)

  def gradients(trained, frozen, stats, rows, key):
    attack_key, key = jax.random.split(key)
    attacked = perturb(
      forward, config.adversarial, freezing.merge(trained, frozen), stats, rows, (attack_key, key)
    )
    return outer(trained, frozen, stats, rows, attacked, key)

  return gradients


def _make_forward(model: nn.Module, config: Config) -> Forward:
  def forward(params, stats, images, key, train):
    images = normalise(images, config.data.mean, config.data.std)
    variables = {'params': params, 'batch_stats': stats}
    if not train:
      return jnp.asarray(model.apply(variables, images, train=False)), stats
    logits, new = model.apply(
      variables, images, train=True, mutable=['batch_stats'], rngs={'dropout': key}
    )
    return logits, new.get('batch_stats', {})

  return forward


def perturb(
  forward: Forward,
  adversarial: Config,
  params: Any,
  stats: Any,
  rows: Rows,
  keys: tuple[jax.Array, jax.Array],
) -> jax.Array:
  """The inner maximisation: images (B, H, W, C) in [0, 1], in the ball around `rows`.

  Args:
    forward: the network.
    adversarial: the config's group.
    params: of the network.
    stats: its running statistics; they stay as they are.
    rows: images in [0, 1] and targets.
    keys: of the start, and of the network's dropout.
  """
  images, targets, _ = rows
  kind, train = adversarial.kind, adversarial.batch_norm == 'train'

  def logits_of(x):
    return forward(params, stats, x, keys[1], train)[0]

  clean = logits_of(images) if kind == 'trades' else None

  def loss_fn(x):
    if clean is not None:
      return kl_divergence(clean, logits_of(x))
    return soft_cross_entropy(logits_of(x), targets)

  start = None
  if kind in _BETA:
    start = _NOISE * jax.random.normal(keys[0], images.shape, jnp.float32)
  delta = pgd_delta(
    loss_fn,
    images,
    keys[0],
    adversarial.norm,
    adversarial.eps,
    step_size(adversarial),
    steps=1 if kind == 'fast' else adversarial.steps,
    random_start=kind == 'fast' or adversarial.random_start,
    start=start,
  )
  return jnp.clip(images + delta, 0.0, 1.0)


def _make_loss(forward: Forward, adversarial: Config) -> Callable[..., Any]:
  """f(trained, frozen, stats, rows, attacked images, key) -> (mean loss, Aux)."""
  kind = adversarial.kind
  beta = adversarial.beta or _BETA.get(kind, 0.0)

  def loss_fn(trained, frozen, stats, rows, attacked, key):
    images, targets, _ = rows
    params, metrics = freezing.merge(trained, frozen), {}
    natural = None
    if kind in _BETA:
      natural, stats = forward(params, stats, images, key, True)
      metrics['top1'] = hit_rate(natural, targets)
    logits, stats = forward(params, stats, attacked, key, True)
    plain = soft_cross_entropy(logits, targets)
    if natural is None:
      losses = plain
    else:
      published = trades_loss if kind == 'trades' else mart_loss
      losses = published(natural, logits, targets, beta)
    return jnp.mean(losses), Aux(stats, metrics | _measured(plain, logits, targets))

  return loss_fn


def _measured(losses: jax.Array, logits: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
  return {'adversarial_loss': jnp.mean(losses), 'adversarial_top1': hit_rate(logits, targets)}


def _free_gradients(forward: Forward, adversarial: Config) -> GradientFunction:
  """One replay of free adversarial training; the perturbation moves after the gradients are taken.

  It is kept in the ball, not in the pixel range, which is another one for the next image; the
  network sees images + perturbation cut to [0, 1].
  """

  def loss_fn(trained, attacked, frozen, stats, targets, key):
    params = freezing.merge(trained, frozen)
    logits, stats = forward(params, stats, attacked, key, True)
    losses = soft_cross_entropy(logits, targets)
    return jnp.mean(losses), Aux(stats, _measured(losses, logits, targets))

  both = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)

  def gradients(trained, frozen, stats, rows, key):
    images, targets, perturbation = rows
    attacked = jnp.clip(images + perturbation, 0.0, 1.0)
    (loss, aux), (grads, up) = both(trained, attacked, frozen, stats, targets, key)
    moved = perturbation + ascent(up, adversarial.norm, step_size(adversarial))
    moved = _into_ball(moved, adversarial.norm, adversarial.eps)
    return (loss, aux._replace(perturbation=moved)), grads

  return gradients


def _into_ball(delta: jax.Array, norm: str, eps: float) -> jax.Array:
  """The nearest point of the ball ('linf' or 'l2') alone, wherever the pixel range ends."""
  if norm == 'linf':
    return jnp.clip(delta, -eps, eps)
  length = jnp.minimum(norm_of(delta, 'l2'), eps)
  return normalize(delta, 'l2') * per_image(length, delta)


def attack_for_evaluation(
  classify: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  labels: jax.Array,
  keys: jax.Array,
  config: Config,
) -> jax.Array:
  """PGD on the cross entropy: `eval_steps` steps of 2.5 eps / eval_steps from a random start.

  Args:
    classify: images in [0, 1] -> logits (B, K), in evaluation mode.
    images: float32 (B, H, W, C) in [0, 1].
    labels: int32 (B,).
    keys: (B,), one an image.
    config: the whole experiment configuration.

  Returns:
    The perturbed images, in [0, 1].
  """
  adversarial = config.adversarial
  norm, eps, steps = adversarial.norm, adversarial.eps, adversarial.eval_steps

  def loss_fn(x):
    # A rising function of the cross-entropy, whose gradient no confidence rounds to 0.
    return log_odds(classify(x).astype(jnp.float32), labels)

  start = random_start(keys, images, norm, eps)
  delta = pgd_delta(loss_fn, images, keys, norm, eps, 2.5 * eps / steps, steps, start=start)
  return jnp.clip(images + delta, 0.0, 1.0)
