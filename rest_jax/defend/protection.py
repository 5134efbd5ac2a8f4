"""Defences in front of a model: what an evaluation judges, and what an adaptive attack sees."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from rest_jax.attacks.wrappers import bpda, eot
from rest_jax.callables import as_function
from rest_jax.defend.denoise.denoisers import Denoiser, denoiser
from rest_jax.defend.features import FeatureDenoiser, at_layer
from rest_jax.errors import UserError
from rest_jax.layers import with_layer

DRAWS = 8


def protect(
  model: Any, *defences: Any, key: jax.Array | None = None, draws: int = DRAWS
) -> Partial:
  """A model behind defences, as it is used and judged.

  Args:
    model: images (B, H, W, C) in [0, 1] to logits (B, K): a `Classifier` or any function.
    *defences: the one that meets the image first comes first: `Denoiser`s, names of
      `list_denoisers()` (at their default strength), functions of images to images, or
      `FeatureDenoiser`s and their names ('non_local@stage2'), which go into the model, wherever
      they stand in the list. None: the model by itself.
    key: of random defences where the model is called without an attack; `jax.random.key(0)` by
      default. Attacks and evaluations draw with keys of their own, one an image.
    draws: of random defences, whose prediction is that of the mean probabilities over so many.

  Returns:
    Images to logits; of a random defence a model that takes keys, which every attack knows
    (`attacks.eot`).

  Raises:
    UserError: an unknown name, or what is no function.
  """
  return _behind(model, defences, key, draws, adaptive=False)


def attackable(
  model: Any, *defences: Any, key: jax.Array | None = None, draws: int = DRAWS
) -> Partial:
  """The same model for an adaptive attack: equal values, with gradients that lead somewhere.

  Backwards, a denoiser that is not differentiable is its surrogate, or the identity where it has
  none (BPDA: Athalye et al., "Obfuscated gradients give a false sense of security", 2018, section
  4.1); a random one is averaged over draws (EOT, section 4.2 there). A function of yours that is
  not differentiable goes through `attacks.bpda` before it is given here.

  Args:
    model: as in `protect`, and so are the other arguments.
    *defences: likewise.
    key: likewise.
    draws: likewise; the gradient is the mean over so many.

  Returns:
    As `protect`, and the same logits.

  Raises:
    UserError: as `protect`.
  """
  return _behind(model, defences, key, draws, adaptive=True)


def is_random(defence: Any) -> bool:
  """Whether a defence draws anew at every call."""
  return isinstance(defence, Denoiser) and defence.random


def as_defences(defences: tuple[Any, ...]) -> tuple[Any, ...]:
  """Names become denoisers; whatever else can be called stays.

  Raises:
    UserError: an unknown name, or what is no function.
  """
  found = tuple(_named(one) if isinstance(one, str) else one for one in defences)
  for one in found:
    if not callable(one):
      raise UserError(
        f'a defence is a denoiser, its name or a function of images, not {type(one).__name__}'
      )
  return found


def _named(name: str) -> Denoiser | FeatureDenoiser:
  if '@' in name:
    kind, _, layer = name.partition('@')
    return at_layer(kind, layer)
  return denoiser(name)


def _behind(model: Any, defences: tuple[Any, ...], key: Any, draws: int, adaptive: bool) -> Partial:
  found = as_defences(defences)
  function = as_function(model)
  for one in found:
    if isinstance(one, FeatureDenoiser):
      function = Partial(_with_features, function, one)
  links = tuple(_link(one, adaptive) for one in found if not isinstance(one, FeatureDenoiser))
  if not links:
    return function
  if not any(map(is_random, found)):
    return Partial(_fixed, function, *links)
  return eot(Partial(_random, function, *links), draws, jax.random.key(0) if key is None else key)


def _link(defence: Any, adaptive: bool) -> Partial:
  """One defence as a function of images, or of images and a key."""
  if not isinstance(defence, Denoiser):
    return as_function(defence)
  if defence.random:
    return Partial(_Draw(adaptive and not defence.differentiable), defence)
  # A denoiser's leaves are data: another strength compiles nothing anew.
  plain = Partial(_denoise, defence)
  return bpda(plain, defence.near()) if adaptive and not defence.differentiable else plain


def _denoise(defence: Denoiser, images: jax.Array) -> jax.Array:
  return defence(images)


@dataclasses.dataclass(frozen=True)
class _Draw:
  """The function of a random link."""

  straight_through: bool
  draws = True

  def __call__(self, defence: Denoiser, images: jax.Array, key: jax.Array) -> jax.Array:
    if not self.straight_through:
      return defence(images, key)
    return bpda(Partial(_with_key, defence, key), defence.near())(images)


def _with_key(defence: Denoiser, key: jax.Array, images: jax.Array) -> jax.Array:
  return defence(images, key)


def _with_features(model: Partial, defence: FeatureDenoiser, images: jax.Array) -> jax.Array:
  return with_layer(model, defence.layer, defence, images)


def _fixed(*links_and_images: Any) -> jax.Array:
  function, *links, images = links_and_images
  for link in links:
    images = link(images)
  return function(images)


def _random(*links_and_arguments: Any) -> jax.Array:
  """Each random link gets a key of its own, so that two of a kind draw differently."""
  function, *links, images, key = links_and_arguments
  for number, link in enumerate(links):
    if getattr(link.func, 'draws', False):
      images = link(images, jax.random.fold_in(key, jnp.uint32(number)))
    else:
      images = link(images)
  return function(images)
