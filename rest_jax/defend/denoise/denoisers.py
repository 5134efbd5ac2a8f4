"""Denoisers: images in, images out, by a transform, a compression of it and its inverse.

F-IF ("On the limitations of denoising strategies as adversarial defenses", 2012.09384): a defence
is a denoising transform F and a reconstruction, inverse F. That F is made of a lossless transform
and a compression, and that one strength from 0 to 1 steers it, is our reading: the paper's body
could not be read.

`register` makes a denoiser known by name; `denoiser` builds one.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import Partial

from rest_jax.attacks.queries import image_keys
from rest_jax.attacks.threat import check_key
from rest_jax.errors import UserError, did_you_mean
from rest_jax.inputs import check_images, check_layout
from rest_jax.ops.platform import jit

Family = Literal['spatial', 'frequency', 'latent']
Needs = Literal['patches', 'autoencoder', 'model']
FAMILIES: tuple[str, ...] = get_args(Family)
Builder = Callable[..., 'Denoiser']

_PACKAGE = 'rest_jax.defend.denoise'
_MODULES = (
  'autoencoder',
  'band_filters',
  'bilateral',
  'bit_depth',
  'block_dct',
  'gaussian',
  'jpeg',
  'median',
  'non_local_means',
  'pca',
  'resize_pad',
  'total_variation',
  'wavelet',
)


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """inverse(compress(forward(images))): a pytree, so that strengths and weights are data.

  Attributes:
    name: of the registry.
    random: it draws anew at every call, and needs a key.
    differentiable: its gradient says how its output changes; where not, `surrogate` or the
      identity stands in for it in an attack.
    strength: float32 scalar, from 0 (the images come back bit for bit) to 1.
    forward: `forward(images) -> z`, F: float32 (B, H, W, C) to any pytree.
    compress: `compress(z, strength) -> z`, or `compress(z, strength, keys) -> z`, with one key an
      image (B,), where it is random.
    inverse: `inverse(z, shape) -> images` of the static shape (B, H, W, C).
    surrogate: `surrogate(images, strength) -> images`, differentiable and near the denoiser, for
      the backward pass of an attack; None where there is none.
  """

  name: str
  strength: jax.Array
  forward: Partial = dataclasses.field(repr=False)
  compress: Partial = dataclasses.field(repr=False)
  inverse: Partial = dataclasses.field(repr=False)
  surrogate: Partial | None = dataclasses.field(default=None, repr=False)
  random: bool = False
  differentiable: bool = True

  def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Denoises.

    Args:
      images: floats (B, H, W, C) in [0, 1], of any float type.
      key: PRNG key of a random denoiser, or one an image (B,); image i draws with
        `fold_in(key, i)`. Others ignore it.

    Returns:
      As `images`. Where a filter rings (bands, wavelets), values leave [0, 1] a little: the model
      gets them as they are, `jnp.clip` comes before whatever takes images alone.

    Raises:
      UserError: no images (B, H, W, C) in [0, 1], or no key for a random denoiser.
    """
    images = check_images(images, dtype=None)
    return _denoise(self, images, _keys(self, images, key)) if len(images) else images

  def with_strength(self, strength: float | jax.Array) -> Denoiser:
    """The same denoiser at another strength: nothing is compiled anew.

    Raises:
      UserError: the strength is not a number in [0, 1].
    """
    return dataclasses.replace(self, strength=check_strength(self.name, strength))

  def near(self) -> Partial:
    """A differentiable function of images alone for BPDA: the surrogate, or the identity."""
    if self.surrogate is None:
      return Partial(_same)
    return Partial(_near, self.strength, self.surrogate)


jax.tree_util.register_dataclass(
  Denoiser,
  data_fields=['strength', 'forward', 'compress', 'inverse', 'surrogate'],
  meta_fields=['name', 'random', 'differentiable'],
)


def noise_only(denoiser: Denoiser, delta: jax.Array, key: jax.Array | None = None) -> jax.Array:
  """What a denoiser leaves of a perturbation: IF(F(delta)), as if all of the noise were known.

  Our reading: D(1/2 + delta) - D(1/2). For a linear denoiser this is D(delta), up to rounding; of
  those made for pixels (JPEG, bit depth, median) the perturbation is seen on mid grey, where no
  picture hides it and nothing is clipped. A random denoiser draws the same for both.

  Args:
    denoiser: any.
    delta: floats (B, H, W, C), adversarial minus clean images.
    key: as `Denoiser` takes it.

  Returns:
    As `delta`; at strength 0 its very bits.

  Raises:
    UserError: as `Denoiser`.
  """
  check_layout(delta, what='perturbations')
  delta = jnp.asarray(delta)
  return _noise_only(denoiser, delta, _keys(denoiser, delta, key)) if len(delta) else delta


def step(function: Callable[..., Any], *leaves: Any, **options: Any) -> Partial:
  """A part of a denoiser: `function(*leaves, *arguments, **options)`.

  Args:
    function: of a module, not a closure: it is part of the compiled program.
    *leaves: arrays, data of the compiled program.
    **options: hashable settings, part of the compiled program. Two steps of equal function and
      options share their compilation.
  """
  return Partial(_With(function, tuple(sorted(options.items()))), *leaves)


@dataclasses.dataclass(frozen=True)
class _With:
  """A function with settings that compares by value, as `functools.partial` does not."""

  function: Callable[..., Any]
  options: tuple[tuple[str, Any], ...]

  def __call__(self, *args: Any) -> Any:
    return self.function(*args, **dict(self.options))


def in_pixels(name: str, strength: Any, compress: Partial, **fields: Any) -> Denoiser:
  """A denoiser without a transform: `compress` works on the pixels."""
  inverse = Partial(_same)
  return Denoiser(name, check_strength(name, strength), Partial(_same), compress, inverse, **fields)


def check_strength(name: str, strength: Any) -> jax.Array:
  """Returns the strength as a float32 scalar; `UserError` unless it is a number in [0, 1]."""
  if isinstance(strength, Tracer):
    return jnp.asarray(strength, jnp.float32)
  try:
    value = float(strength)
  except (TypeError, ValueError):
    value = float('nan')
  if not 0 <= value <= 1:
    raise UserError(
      f'the strength of {name} is a number from 0 (identity) to 1, not {strength!r:.40}'
    )
  return jnp.asarray(value, jnp.float32)


def check_positive(option: str, value: Any) -> None:
  """Raises `UserError` unless an option's value is a finite number above 0."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
    raise UserError(f'{option} is a number above 0, not {value!r:.40}')


def _keys(denoiser: Denoiser, images: Any, key: Any) -> jax.Array | None:
  if not denoiser.random:
    return None
  if key is None:
    raise UserError(f'{denoiser.name} is random and needs a key, as jax.random.key(0)')
  return image_keys(check_key(key), images.shape[0])


@jit
def _denoise(denoiser: Denoiser, images: jax.Array, keys: jax.Array | None) -> jax.Array:
  out = _transform(denoiser, images.astype(jnp.float32), keys).astype(images.dtype)
  return jnp.where(denoiser.strength == 0, images, out)


@jit
def _noise_only(denoiser: Denoiser, delta: jax.Array, keys: jax.Array | None) -> jax.Array:
  wide = delta.astype(jnp.float32)
  # Without draws one grey image does for all.
  grey = jnp.full_like(wide if denoiser.random else wide[:1], 0.5)
  left = _transform(denoiser, 0.5 + wide, keys) - _transform(denoiser, grey, keys)
  return jnp.where(denoiser.strength == 0, delta, left.astype(delta.dtype))


def _transform(denoiser: Denoiser, images: jax.Array, keys: jax.Array | None) -> jax.Array:
  draws = () if keys is None else (keys,)
  z = denoiser.compress(denoiser.forward(images), denoiser.strength, *draws)
  return denoiser.inverse(z, images.shape)


def _same(z: Any, shape: tuple[int, ...] | None = None) -> Any:
  del shape
  return z


def _near(strength: jax.Array, surrogate: Partial, images: jax.Array) -> jax.Array:
  return jnp.where(strength == 0, images, surrogate(images, strength))


@dataclasses.dataclass(frozen=True)
class DenoiserInfo:
  """What there is to know of a denoiser.

  Attributes:
    name: as users say it.
    build: `build(strength, **options) -> Denoiser`.
    family: where it works: on pixels, on frequencies, or in a learned or fitted space.
    strength: in a few words, what it does at strengths above 0.
    source: publication, and the implementation that it agrees with.
    differentiable: its gradient is its own.
    random: it takes a key.
    needs: what has to be fitted or trained first and given as an option; None for nothing.
  """

  name: str
  build: Builder
  family: str
  strength: str
  source: str
  differentiable: bool = True
  random: bool = False
  needs: str | None = None

  def options(self) -> dict[str, Any]:
    """The builder's options with their defaults."""
    parameters = list(inspect.signature(self.build).parameters.values())[1:]
    return {p.name: p.default for p in parameters}


_REGISTERED: dict[str, DenoiserInfo] = {}


def register(
  name: str,
  *,
  family: Family,
  source: str,
  strength: str = '',
  differentiable: bool = True,
  random: bool = False,
  needs: Needs | None = None,
) -> Callable[[Builder], Builder]:
  """Decorator: makes `build(strength, **options) -> Denoiser` known.

  Options of the builder are its setting at strength 1; the strength goes from the identity to it.

  Args:
    name: that it is asked for by.
    family: where it works, one of `FAMILIES`.
    source: the paper or the code that it is from.
    strength: what the strength means; by default the first line of the builder's docstring.
    differentiable: whether gradients pass through it as it is.
    random: whether it draws, with a key an image.
    needs: what it has to be given beside the strength.

  Returns:
    The decorator, which gives the builder back.
  """

  def add(build: Builder) -> Builder:
    if name in _REGISTERED:
      raise ValueError(f'two denoisers are called {name!r}')
    if family not in FAMILIES:
      raise ValueError(f'{name}: unknown family {family!r}')
    meaning = strength or (inspect.getdoc(build) or '').split('\n')[0]
    _REGISTERED[name] = DenoiserInfo(
      name, build, family, meaning, source, differentiable, random, needs
    )
    return build

  return add


class _Denoisers(Mapping[str, DenoiserInfo]):
  """Name to `DenoiserInfo`, by family and then by name; the modules are imported on first use."""

  def _all(self) -> dict[str, DenoiserInfo]:
    for module in _MODULES:
      importlib.import_module(f'{_PACKAGE}.{module}')
    return _REGISTERED

  def __getitem__(self, name: str) -> DenoiserInfo:
    return self._all()[name]

  def __iter__(self) -> Iterator[str]:
    known = self._all()
    return iter(sorted(known, key=lambda name: (FAMILIES.index(known[name].family), name)))

  def __len__(self) -> int:
    return len(self._all())


DENOISERS: Mapping[str, DenoiserInfo] = _Denoisers()


def list_denoisers(family: str | None = None) -> list[str]:
  """Names that `denoiser` takes: spatial, then frequency, then latent.

  Args:
    family: one of these alone.

  Raises:
    UserError: an unknown family.
  """
  if family is not None and family not in FAMILIES:
    raise UserError(f'unknown family of denoisers {family!r}; there are {", ".join(FAMILIES)}')
  return [name for name, info in DENOISERS.items() if family in (None, info.family)]


def denoiser(name: str, strength: float = 0.5, **options: Any) -> Denoiser:
  """Builds a denoiser by name.

  Args:
    name: one of `list_denoisers()`.
    strength: from 0, the identity, to 1, the denoiser's strongest documented setting.
    **options: the denoiser's own; they are its setting at strength 1.

  Returns:
    A function of images (B, H, W, C) in [0, 1], to images.

  Raises:
    UserError: an unknown name or option, or a value out of range.
  """
  if name not in DENOISERS:
    raise UserError(f'there is no denoiser {name!r}; {did_you_mean(name, list_denoisers())}')
  known = DENOISERS[name].options()
  for option in options:
    if option not in known:
      hint = did_you_mean(option, known) if known else 'it has none'
      raise UserError(f'{name} has no option {option!r}; {hint}')
  return DENOISERS[name].build(strength, **options)
