"""A batch on the device, under jit: scaling, mixup, cutmix, random erasing, normalisation.

Images are float32 (B, H, W, C) in [0, 1], targets float32 (B, K) with rows that sum to 1. The
semantics are timm's in its 'batch' mode: one draw of mixing a batch, the partner of an image is
its mirror place in the batch.

References:
  mixup: Zhang et al., arXiv 1710.09412. cutmix: Yun et al., arXiv 1905.04899.
  Random erasing: Zhong et al., arXiv 1708.04896.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rest_jax.errors import UserError

_ATTEMPTS = 10  # at an erased box that fits into the image


def cut_box(key: jax.Array, height: int, width: int, lam: jax.Array) -> tuple[jax.Array, ...]:
  """Draws the box that cutmix replaces, around an even centre and cut at the border.

  Args:
    key: source of chance.
    height: of the images, in pixels.
    width: of the images.
    lam: () float32, the share of the image that should stay.

  Returns:
    (top, left, bottom, right), () int32 each, the ends exclusive; 1 - lam of the area where the
    border cuts nothing off, up to rounding down.
  """
  key_y, key_x = jax.random.split(key)
  ratio = jnp.sqrt(1 - lam)
  half_h = (height * ratio).astype(jnp.int32) // 2
  half_w = (width * ratio).astype(jnp.int32) // 2
  y = jax.random.randint(key_y, (), 0, height)
  x = jax.random.randint(key_x, (), 0, width)
  top, bottom = jnp.clip(y - half_h, 0, height), jnp.clip(y + half_h, 0, height)
  left, right = jnp.clip(x - half_w, 0, width), jnp.clip(x + half_w, 0, width)
  return top, left, bottom, right


def _inside(height: int, width: int, box: tuple[jax.Array, ...]) -> jax.Array:
  """Which pixels lie in boxes of shape (...): (..., height, width) bool."""
  top, left, bottom, right = (edge[..., None, None] for edge in box)
  y = jax.lax.broadcasted_iota(jnp.int32, (*top.shape[:-2], height, 1), top.ndim - 2)
  x = jax.lax.broadcasted_iota(jnp.int32, (*top.shape[:-2], 1, width), top.ndim - 1)
  return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def mixup_cutmix(
  key: jax.Array,
  images: jax.Array,
  targets: jax.Array,
  mixup_alpha: float = 0.8,
  cutmix_alpha: float = 1.0,
  switch_prob: float = 0.5,
  prob: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Mixes each image of a batch, and its target, with those at the mirror place of the batch.

  mixup: lam x + (1 - lam) x', lam ~ Beta(mixup_alpha, mixup_alpha). cutmix: a box of about
  1 - lam of the area is taken from x', lam ~ Beta(cutmix_alpha, cutmix_alpha), and lam is then
  corrected to the area that truly stayed. Targets mix with the same lam.

  Args:
    key: source of chance.
    images: (B, H, W, C) float32 in [0, 1].
    targets: (B, K) float32, rows sum to 1.
    mixup_alpha: 0 turns mixup off. A Python number, like all that follow.
    cutmix_alpha: 0 turns cutmix off.
    switch_prob: probability of cutmix where both are on.
    prob: probability that the batch is mixed at all.

  Returns:
    (images, targets), as they came.

  Raises:
    UserError: a negative alpha or a probability outside [0, 1].
  """
  if min(mixup_alpha, cutmix_alpha) < 0 or not (0 <= switch_prob <= 1 and 0 <= prob <= 1):
    raise UserError(
      'mixup and cutmix need alphas of 0 or more and probabilities in [0, 1], got '
      f'{mixup_alpha}, {cutmix_alpha}, {switch_prob}, {prob}'
    )
  if prob == 0 or (mixup_alpha == 0 and cutmix_alpha == 0):
    return images, targets
  key_mix, key_cut, key_box, key_switch, key_apply = jax.random.split(key, 5)
  height, width = images.shape[1:3]
  # Without mixing, lam is 1 and the box empty: one path, no branch on the device.
  lam, inside = jnp.float32(1), jnp.zeros((height, width), bool)
  if mixup_alpha > 0:
    lam = jax.random.beta(key_mix, mixup_alpha, mixup_alpha, dtype=jnp.float32)
  if cutmix_alpha > 0:
    share = 1.0 if mixup_alpha == 0 else switch_prob
    cut = jax.random.bernoulli(key_switch, share)
    wanted = jax.random.beta(key_cut, cutmix_alpha, cutmix_alpha, dtype=jnp.float32)
    inside = _inside(height, width, cut_box(key_box, height, width, wanted)) & cut
    lam = jnp.where(cut, 1, lam)
  apply = jax.random.bernoulli(key_apply, prob)
  inside, lam = inside & apply, jnp.where(apply, lam, 1)
  partner = images[::-1]
  mixed = jnp.where(inside[None, :, :, None], partner, images * lam + partner * (1 - lam))
  lam = lam * (1 - jnp.mean(inside, dtype=jnp.float32))
  return mixed, targets * lam + targets[::-1] * (1 - lam)


def random_erasing(
  key: jax.Array,
  images: jax.Array,
  prob: float = 0.25,
  area: tuple[float, float] = (0.02, 1 / 3),
  min_aspect: float = 0.3,
  mean: tuple[float, ...] = (0.485, 0.456, 0.406),
  std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> jax.Array:
  """Replaces a random box of some images by noise, one normal number a pixel and channel.

  Args:
    key: source of chance.
    images: (B, H, W, C) float32 in [0, 1].
    prob: probability of each image; a Python number, like all that follow.
    area: (low, high) share of the area that is erased.
    min_aspect: least height over width; the largest is its inverse, evenly in the logarithm.
    mean: per channel, of the noise.
    std: per channel. With the classifier's mean and std the noise is standard normal to the
      network, as timm has it; it is not cut to [0, 1] for that reason.

  Returns:
    (B, H, W, C) float32. Of ten boxes drawn for an image the first that is smaller than the image
    is taken; if none is, the image stays.

  Raises:
    UserError: prob outside [0, 1], or an impossible area or aspect.
  """
  if not (0 <= prob <= 1 and 0 < area[0] <= area[1] <= 1 and 0 < min_aspect <= 1):
    raise UserError(
      'random erasing needs prob in [0, 1], 0 < area <= 1, 0 < min_aspect <= 1, got '
      f'{prob}, {area}, {min_aspect}'
    )
  if prob == 0:
    return images
  batch, height, width, _ = images.shape
  key_apply, key_box, key_noise = jax.random.split(key, 3)
  box, fits = _erased_boxes(key_box, batch, height, width, area, min_aspect)
  apply = jax.random.bernoulli(key_apply, prob, (batch,)) & fits
  noise = jax.random.normal(key_noise, images.shape, jnp.float32)
  noise = noise * _per_channel(std) + _per_channel(mean)
  inside = _inside(height, width, box) & apply[:, None, None]
  return jnp.where(inside[..., None], noise, images)


def _per_channel(values: tuple[float, ...]) -> jax.Array:
  return jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)


def _erased_boxes(
  key: jax.Array,
  batch: int,
  height: int,
  width: int,
  area: tuple[float, float],
  min_aspect: float,
) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """For each image the first of ten boxes that fits: (top, left, bottom, right), and whether."""
  key_area, key_aspect, key_y, key_x = jax.random.split(key, 4)
  shape, limit = (batch, _ATTEMPTS), math.log(min_aspect)
  pixels = height * width * jax.random.uniform(key_area, shape, jnp.float32, *area)
  aspect = jnp.exp(jax.random.uniform(key_aspect, shape, jnp.float32, limit, -limit))
  h = jnp.round(jnp.sqrt(pixels * aspect)).astype(jnp.int32)
  w = jnp.round(jnp.sqrt(pixels / aspect)).astype(jnp.int32)
  fits = (h < height) & (w < width)
  first = jnp.argmax(fits, axis=1)[:, None]
  h = jnp.take_along_axis(h, first, axis=1)[:, 0]
  w = jnp.take_along_axis(w, first, axis=1)[:, 0]
  top = jax.random.randint(key_y, (batch,), 0, jnp.maximum(height - h, 0) + 1)
  left = jax.random.randint(key_x, (batch,), 0, jnp.maximum(width - w, 0) + 1)
  return (top, left, top + h, left + w), fits.any(axis=1)


def to_unit(images: jax.Array) -> jax.Array:
  """Scales uint8 images to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255.0


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """Removes the channel means and divides by the channel standard deviations.

  Args:
    images: float32 (B, H, W, 3) in [0, 1].
    mean: three channel means.
    std: three channel standard deviations.

  Returns:
    float32 (B, H, W, 3).
  """
  shape = (1, 1, 1, 3)
  centred = images - jnp.asarray(mean, jnp.float32).reshape(shape)
  return centred / jnp.asarray(std, jnp.float32).reshape(shape)
