"""What methods and measures share of their signatures, said once.

A method is written as a function of what it works with: a tap, images, targets, sometimes a key.
Its public face takes what a user has (a model, `layer`, `output`, `score` ...), checks it and
hands it over. `Face` makes the signature and the docstring of that face: the shared arguments come
from the table here, the function's own ones, keyword-only, from its signature and its docstring.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rest_jax.docstrings import composed
from rest_jax.errors import UserError
from rest_jax.explain.queries import prepare
from rest_jax.explain.taps import Tap

_REQUIRED = inspect.Parameter.empty


class Shared(NamedTuple):
  """An argument that many functions have: annotation, default, and its line of a docstring."""

  annotation: str
  default: Any
  text: str


SHARED = {
  'model': Shared(
    'Any',
    _REQUIRED,
    'a `Classifier`, any function of images to logits (B, K), a pair `(features_fn, head_fn)`, or '
    'a tap; with `score` it may give anything. `explain.tap` has the details.',
  ),
  'images': Shared('jax.Array | np.ndarray', _REQUIRED, 'floats (B, H, W, C) in [0, 1].'),
  'maps': Shared(
    'jax.Array | np.ndarray',
    _REQUIRED,
    '(B, H, W), any scale: only their order counts; ties go in an order without a pattern '
    '(`metrics.order`).',
  ),
  'targets': Shared(
    'Any', None, 'class indices, (B,) or one for all; by default the predicted classes.'
  ),
  'key': Shared(
    'jax.Array | None', None, 'the source of all chance; `jax.random.key(0)` by default.'
  ),
  'layer': Shared(
    'str | None',
    None,
    "path of the layer whose map A is used, such as 'stage4/block1'; `explain.list_layers` names "
    'them. By default the smallest map of 7 x 7 or more among the stages.',
  ),
  'grid': Shared(
    'tuple[int, int] | None',
    None,
    '(rows, columns) of a layer that gives tokens (B, N, C); inferred where it can be.',
  ),
  'output': Shared(
    'str | None',
    None,
    "what makes probabilities of logits: 'softmax', or 'sigmoid' for each by itself; by default "
    'the sigmoid of a single logit and the softmax of several.',
  ),
  'score': Shared(
    'Callable[[Any], jax.Array] | None',
    None,
    "what is explained instead of a class: a function of the model's outputs to one real number "
    'an image, (B,).',
  ),
  'query_batch': Shared('int', _REQUIRED, 'images a pass, at most; changes memory and speed only.'),
}


class Asked(NamedTuple):
  """A call of a face: what was handed over, and what came of it."""

  point: Tap
  images: jax.Array
  targets: jax.Array | None
  found: Any


@dataclasses.dataclass(frozen=True)
class Face:
  """The public side of a function.

  Attributes:
    function: takes, by place and by their names, some of `point` (the tap), `images` (float32),
      `maps`, `targets` (int32 (B,) or None), `key` or `keys` (B,), and `query_batch`, and its own
      options by keyword.
    signature: of the public side: `first`, then by keyword `key` where the function takes one,
      `layer` and `grid` where it looks at one, its own, `output`, `score` and `query_batch`.
    document: docstring of the public side.
  """

  function: Callable[..., Any]
  signature: inspect.Signature
  document: str

  @classmethod
  def of(
    cls,
    function: Callable[..., Any],
    first: Sequence[str],
    *,
    layer: bool,
    query_batch: int,
    returns: tuple[str, str],
    raises: str,
  ) -> Face:
    """Composes a face.

    Args:
      function: as `Face` has it; a line on an argument in its docstring goes before the shared one,
        and so do its own Returns and Raises.
      first: shared arguments by place.
      layer: whether it looks at a layer.
      query_batch: the default.
      returns: annotation and docstring of what the public side gives.
      raises: docstring of when it raises `UserError`.
    """
    own = [p for p in _parameters(function) if p.kind is p.KEYWORD_ONLY]
    before = (('key',) if takes_key(function) else ()) + (('layer', 'grid') if layer else ())
    last = {'query_batch': query_batch}
    parameters = [_shared(name, by_keyword=False) for name in first]
    parameters += [_shared(name) for name in before] + own
    parameters += [_shared(name, default=last.get(name)) for name in _LAST]
    signature = inspect.Signature(parameters, return_annotation=returns[0])
    shared = {name: entry.text for name, entry in SHARED.items()}
    return cls(function, signature, composed(function, signature, shared, returns[1], raises))

  def ask(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Asked:
    """Checks what a user gave, and calls the function with what it works with.

    Raises:
      TypeError: an unknown argument, or one missing.
      UserError: what cannot be explained.
    """
    try:
      bound = self.signature.bind(*args, **kwargs)
    except TypeError as error:
      raise TypeError(f'{self.function.__name__}(): {error}') from None
    bound.apply_defaults()
    given = bound.arguments
    point, images, targets = prepare(
      given.pop('model'),
      given.pop('images'),
      given.pop('targets'),
      given.pop('layer', None),
      given.pop('grid', None),
      output=given.pop('output'),
      score=given.pop('score'),
    )
    if 'key' in given:
      given |= _keys(self.function, given['key'], len(images))
    values = {**given, 'point': point, 'images': images, 'targets': targets}
    places = [p.name for p in _parameters(self.function) if p.kind is not p.KEYWORD_ONLY]
    own = {name: given[name] for name in given if name not in (*SHARED, 'keys')}
    found = self.function(*(values[name] for name in places), **own)
    return Asked(point, images, targets, found)

  def put_on(self, wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """The wrapper, which looks like the public side and shows the function as its source."""
    face: Any = functools.wraps(self.function)(wrapper)
    face.__signature__ = self.signature
    face.__doc__ = self.document
    parameters = self.signature.parameters.values()
    face.__annotations__ = {p.name: p.annotation for p in parameters}
    face.__annotations__['return'] = self.signature.return_annotation
    return face


_LAST = ('output', 'score', 'query_batch')


def takes_key(function: Callable[..., Any]) -> bool:
  """Whether a function is random: it has a parameter `key`."""
  return any(p.name in ('key', 'keys') for p in _parameters(function))


def as_key(key: Any) -> Any:
  """A key, or some, as `jax.random.key` makes them; one of `jax.random.PRNGKey` too, and None."""
  if key is None or jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return key
  return jax.random.wrap_key_data(key)


def _keys(function: Callable[..., Any], key: Any, batch: int) -> dict[str, Any]:
  """The key, that of everybody by default, by the name under which a function takes it."""
  key = jax.random.key(0) if key is None else as_key(key)
  many = any(p.name == 'keys' for p in _parameters(function))
  if key.shape not in ((), (1,), (batch,)) or (key.shape and not many):
    takes = f'one key, or one for each of {batch} images' if many else 'one key for all images'
    raise UserError(f'{function.__name__} takes {takes}, got keys of shape {key.shape}')
  return {'key': key, 'keys': jnp.broadcast_to(key, (batch,))} if many else {'key': key}


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
  """A function's parameters, in their order."""
  return list(inspect.signature(function).parameters.values())


def _shared(name: str, by_keyword: bool = True, default: Any = None) -> inspect.Parameter:
  """The parameter of a shared argument."""
  kind = inspect.Parameter.KEYWORD_ONLY if by_keyword else inspect.Parameter.POSITIONAL_OR_KEYWORD
  chosen = SHARED[name].default if default is None else default
  return inspect.Parameter(name, kind, default=chosen, annotation=SHARED[name].annotation)
