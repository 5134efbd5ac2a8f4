"""Training a network that takes noise out of images, in place of a classifier.

A config with `denoise.noise` above 0 trains a model from images to images (such as
'denoising_autoencoder') on the mean squared error in pixels. The noise of an image is one of four
kinds, each as likely as the others: white or smooth, Gaussian or its sign alone. White Gaussian
noise is what denoisers are commonly trained with; adversarial perturbations within a radius in the
maximum norm are largely +eps or -eps, and not white. The choice of these kinds is ours.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rest_jax.ops import gaussian_blur
from rest_jax.train import freezing
from rest_jax.train.config import Config
from rest_jax.train.gradients import Aux, GradientFunction

_BLUR = (5, 1.0)  # taps and deviation in pixels of what makes noise smooth
_LEAST = 1e-10  # mean squared error that stands for none: 100 dB


def draw_noise(keys: jax.Array, shape: tuple[int, ...], deviation: jax.Array) -> jax.Array:
  """Noise of a random kind for each image.

  Args:
    keys: (B,), one an image; an image's noise depends on nothing else.
    shape: (B, H, W, C).
    deviation: float32 (B,), root mean square of each image's noise.

  Returns:
    float32 (B, H, W, C).
  """

  def draw(key):
    field, kind = jax.random.split(key)
    flags = jax.random.bernoulli(kind, 0.5, (2,))
    return jax.random.normal(field, shape[1:], jnp.float32), flags

  noise, flags = jax.vmap(draw)(keys)
  smooth, signs = flags[:, 0, None, None, None], flags[:, 1, None, None, None]
  noise = jnp.where(smooth, gaussian_blur(noise, *_BLUR), noise)
  noise = jnp.where(signs, jnp.sign(noise), noise)
  scale = deviation * jax.lax.rsqrt(jnp.mean(jnp.square(noise), axis=(1, 2, 3)) + _LEAST)
  return noise * scale[:, None, None, None]


def squared_error(images: jax.Array, others: jax.Array) -> jax.Array:
  """Mean squared difference of the pixels of each image, float32 (B,)."""
  difference = images.astype(jnp.float32) - others.astype(jnp.float32)
  return jnp.mean(jnp.square(difference), axis=(1, 2, 3))


def psnr(error: jax.Array) -> jax.Array:
  """Peak signal-to-noise ratio in dB of mean squared errors, for images in [0, 1].

  At most 100 dB, which is also what no error at all gives.
  """
  return -10 / math.log(10) * jnp.log(jnp.maximum(error, _LEAST))


def denoising_gradients(model: nn.Module, config: Config) -> GradientFunction:
  """Builds the gradient function of the mean squared error, see `gradients`.

  Args:
    model: Linen module from images to images of the same shape.
    config: the whole experiment configuration; each image's noise has a deviation drawn evenly
      from 0 to `denoise.noise`.

  Returns:
    A gradient function on images in [0, 1]; the targets are not looked at.
  """

  def loss_fn(trained, frozen, stats, rows, key):
    images = rows[0]
    noise_key, size_key, dropout_key = jax.random.split(key, 3)
    deviation = config.denoise.noise * jax.random.uniform(size_key, images.shape[:1])
    noisy = images + draw_noise(jax.random.split(noise_key, len(images)), images.shape, deviation)
    clean, new = model.apply(
      {'params': freezing.merge(trained, frozen), 'batch_stats': stats},
      noisy,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': dropout_key},
    )
    errors = squared_error(jnp.asarray(clean), images)
    return jnp.mean(errors), Aux(new.get('batch_stats', {}), {'psnr': jnp.mean(psnr(errors))})

  return jax.value_and_grad(loss_fn, has_aux=True)


def denoising_sums(
  model: nn.Module, config: Config, variables: Any, batch: dict[str, jax.Array], keys: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
  """What an evaluation adds up of a batch.

  Args:
    model: Linen module from images to images.
    config: the whole experiment configuration.
    variables: of the model.
    batch: 'image' float32 (B, H, W, C) in [0, 1] and 'mask' bool (B,), False for padding.
    keys: (B,), of each image's noise.

  Returns:
    Sums: count (int32); loss, psnr and noisy_psnr (float32) of the squared error and of the PSNR
    after and before denoising, noise of deviation `denoise.eval_noise`. And the images that the
    model gave, (B, H, W, C).
  """
  images, mask = batch['image'], batch['mask']
  deviation = jnp.full(images.shape[:1], config.denoise.eval_noise, jnp.float32)
  noisy = images + draw_noise(keys, images.shape, deviation)
  clean = jnp.asarray(model.apply(variables, noisy, train=False))
  errors = squared_error(clean, images)
  before = squared_error(noisy, images)
  each = {'loss': errors, 'psnr': psnr(errors), 'noisy_psnr': psnr(before)}
  sums = {name: jnp.sum(jnp.where(mask, value, 0.0)) for name, value in each.items()}
  return {'count': jnp.sum(mask.astype(jnp.int32)), **sums}, clean
