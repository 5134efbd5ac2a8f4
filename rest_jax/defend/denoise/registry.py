"""Denoisers by name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

from rest_jax.defend.denoise.denoiser import Denoiser
from rest_jax.errors import UserError, did_you_mean

Family = Literal['spatial', 'frequency', 'latent']
Needs = Literal['patches', 'autoencoder', 'model']
FAMILIES: tuple[str, ...] = get_args(Family)
Builder = Callable[..., Denoiser]

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
  """Decorator: makes `build(strength, **options) -> Denoiser` known; arguments as `DenoiserInfo`'s.

  Options of the builder are its setting at strength 1; the strength goes from the identity to it.
  Without `strength` the first line of the builder's docstring says what that means.
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
