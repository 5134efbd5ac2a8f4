"""A trained convolutional autoencoder as a denoiser."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rest_jax.defend.denoise.denoisers import Denoiser, check_strength, register, step
from rest_jax.errors import UserError
from rest_jax.models.autoencoder import DenoisingAutoencoder
from rest_jax.models.classifier import Classifier

DEFAULT = 'digit_scenes_denoiser'  # of the zoo


@register(
  'autoencoder',
  family='latent',
  strength='share of the noise that the network sees which is taken out, at 1 all of it',
  source='ours, after DnCNN (1608.03981) and FFDNet (1710.04026); configs/digit_scenes_denoiser.py',
  needs='autoencoder',
)
def autoencoder(strength: float, model: Any = DEFAULT) -> Denoiser:
  """x - strength * (x - A(x)), A the trained autoencoder.

  F is the encoder, whose narrow code is the compression, and inverse F the decoder.

  Args:
    strength: from 0 to 1.
    model: a zoo name or model directory of a 'denoising_autoencoder' (`python train.py --config
      configs/digit_scenes_denoiser.py` makes one), or what `Classifier.load` gave of it. The zoo's
      was trained on digit_scenes.

  Raises:
    UserError: no such model, or one that is no denoising autoencoder.
  """
  loaded = model if isinstance(model, Classifier) else Classifier.load(model)
  if not isinstance(loaded.module, DenoisingAutoencoder):
    raise UserError(
      f'the denoiser autoencoder takes a denoising_autoencoder, not {loaded.config.model}; '
      'train.py --config configs/digit_scenes_denoiser.py makes one'
    )
  if set(loaded.mean) != {0.0} or set(loaded.std) != {1.0}:
    raise UserError('a denoising autoencoder works on pixels: its mean is 0 and its deviation 1')
  variables = jax.tree.map(jnp.asarray, loaded.variables)
  return Denoiser(
    'autoencoder',
    check_strength('autoencoder', strength),
    step(_encode, variables, module=loaded.module),
    step(_blend),
    step(_decode, variables, module=loaded.module),
  )


def _encode(variables: Any, images: jax.Array, *, module: nn.Module) -> tuple[Any, ...]:
  """The code, and the images that the decoded noise is taken from."""
  return images, module.apply(variables, images, method='encode')


def _blend(z: tuple[Any, ...], strength: jax.Array) -> tuple[Any, ...]:
  return *z, strength


def _decode(
  variables: Any, z: tuple[Any, ...], shape: tuple[int, ...], *, module: nn.Module
) -> jax.Array:
  images, code, strength = z
  noise = jnp.asarray(module.apply(variables, *code, method='decode'))
  return images - strength * noise[:, : shape[1], : shape[2]]
