"""Methods: the decorator that makes one, all of them by name, and one call that runs any.

A method is its mathematics and a docstring: a function `(point, images, targets, ...)` of a tap,
checked images and targets, whose keyword-only arguments are its own options. `method` makes of it
the function that users call, whose other arguments are in `arguments.SHARED`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rest_jax.errors import UserError, did_you_mean
from rest_jax.explain import checking, shown
from rest_jax.explain.arguments import Asked, Face, as_key, takes_key
from rest_jax.explain.maps import constant_maps
from rest_jax.explain.outputs import are_probable, look_probable
from rest_jax.explain.queries import logits_once, prepare, resolve_targets, whole_targets
from rest_jax.explain.shown import Shown
from rest_jax.explain.taps import Tap

Queries = Callable[[tuple[int, ...], dict[str, Any]], float]
_TOGETHER = 8  # pictures that are explained at once
QUERY_BATCH, LAYER_QUERY_BATCH = 64, 32  # images a pass unless told; fewer where maps are kept


class Detail(NamedTuple):
  """What a method found.

  Attributes:
    maps: (B, H, W) in [0, 1].
    values: (B, H, W), the signed values that the maps show the support of; None where there is no
      sign.
    delta: (B,), how far attributions are from complete, as `Explanation` has it; or None.
    steps: int32 (B,), passes that each image took of its own, gradients along a path or channels
      that are not empty; or None.
    distances: int32 (B,), of a method that makes probabilities of what the model gives: how far
      that is from being some already, as `outputs.distance_from_probabilities` has it; or None.
  """

  maps: jax.Array
  values: jax.Array | None = None
  delta: jax.Array | None = None
  steps: jax.Array | None = None
  distances: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Method:
  """A saliency method.

  Attributes:
    name: as users say it.
    fn: `fn(model, images, targets=None, *, ...) -> maps (B, H, W)` in [0, 1].
    detail: the same call, which gives a `Detail`.
    needs_layer: it looks at a layer's map, and takes `layer` and `grid`.
    needs_key: it is random, and takes `key`.
    queries: forward passes an image that it costs, a backward pass counting as one, from the
      image's shape (H, W, C) and the options. Methods that go channel by channel read the
      number of channels from the option 'channels'.
    source: the paper.
    title: its name as the paper writes it.
    by_pixel: its maps are gradients of single pixels, which pictures stretch.
    variants: values of its option `variant`, the default first; () where it has none.
  """

  name: str
  fn: Callable[..., jax.Array]
  detail: Callable[..., Detail]
  needs_layer: bool
  needs_key: bool
  queries: Queries
  source: str
  title: str
  by_pixel: bool = False
  variants: tuple[str, ...] = ()

  def options(self) -> dict[str, Any]:
    """Keyword arguments of its own with their defaults, without those that `explain` names."""
    parameters = inspect.signature(self.fn).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in own if p.name not in _SAID}


METHODS: dict[str, Method] = {}
_SAID = ('layer', 'grid', 'key', 'output', 'score')  # by `explain` itself

# As tables list them; methods registered elsewhere follow.
_ORDER = (
  'group_cam',
  'grad_cam',
  'grad_cam_pp',
  'smooth_grad_cam_pp',
  'xgrad_cam',
  'hires_cam',
  'layer_cam',
  'eigen_cam',
  'score_cam',
  'ablation_cam',
  'rise',
  'occlusion',
  'gradient',
  'guided_backprop',
  'smooth_grad',
  'integrated_gradients',
  'smooth_integrated_gradients',
)


def method(
  *,
  source: str,
  queries: Queries | int,
  title: str | None = None,
  layer: bool = False,
  by_gradient: bool = False,
  variants: tuple[str, ...] = (),
) -> Callable[[Callable[..., jax.Array | Detail]], Callable[..., jax.Array]]:
  """Decorator: makes a function a method of its name, and looks at what it gives.

  The function takes, by place and by their names, what it needs of: `point` (the tap), `images`
  (float32 (B, H, W, C)), `targets` (int32 (B,), or None for the predicted classes), `key` or, (B,)
  of them, `keys` (which makes the method one of chance) and `query_batch`; keyword-only are its own
  options, with an entry each in its docstring's Args. It gives maps or a `Detail`. Maps that are
  not numbers are then a `UserError`; empty ones whose gradient is 0, attributions that are not
  complete, and a softmax of a softmax, a warning. Under jit none can be looked at.

  Args:
    source: as `Method` has it.
    queries: as `Method` has it, or a number.
    title: as `Method` has it; the function's name in words by default.
    layer: whether it looks at a layer's map, and takes `layer` and `grid`.
    by_gradient: whether a gradient of 0 leaves the map empty.
    variants: as `Method` has it.

  Returns:
    A decorator of such functions; the function it makes, `(model, images, targets=None, *, ...)`,
    gives maps (B, H, W).
  """
  count = queries if callable(queries) else lambda shape, options: queries

  def add(function):
    name = function.__name__
    if name in METHODS:
      raise ValueError(f'two methods are called {name!r}')
    face = _face(function, layer)

    def detail(*args, **kwargs):
      asked = face.ask(args, kwargs)
      found = asked.found if isinstance(asked.found, Detail) else Detail(asked.found)
      _look_at(METHODS[name], by_gradient, found, asked)
      return found

    def maps(*args, **kwargs):
      found = detail(*args, **kwargs)
      checking.warn_if_probable(name, are_probable(found.distances))
      return found.maps

    public, with_detail = face.put_on(maps), face.put_on(detail)
    called = title or name.replace('_', ' ')
    needs_key = takes_key(function)
    by_pixel = by_gradient and not layer
    METHODS[name] = Method(
      name, public, with_detail, layer, needs_key, count, source, called, by_pixel, variants
    )
    return public

  return add


def _face(function: Callable[..., Any], layer: bool) -> Face:
  """The public side of a method."""
  return Face.of(
    function,
    ('model', 'images', 'targets'),
    layer=layer,
    query_batch=LAYER_QUERY_BATCH if layer else QUERY_BATCH,
    returns=('jax.Array', 'float32 (B, H, W) in [0, 1]; a constant map is all zero.'),
    raises=f'bad images, targets{", layer" if layer else ""} or options.',
  )


def _look_at(method: Method, by_gradient: bool, found: Detail, asked: Asked) -> None:
  """Refuses maps that are not numbers, and warns of those that say nothing."""
  checking.check_finite(method.name, found.maps, asked.point, asked.images)
  checking.warn_if_incomplete(method.name, found.delta, found.steps)
  if by_gradient:
    checking.warn_if_empty(method.name, method.needs_layer, found.maps, *asked[:3])


def list_methods() -> list[str]:
  """Names that `explain` takes: class activation maps, then perturbation, then gradients."""
  return sorted(METHODS, key=lambda name: (_ORDER.index(name) if name in _ORDER else 99, name))


def get_method(name: str) -> Method:
  """The method of that name; `UserError` with the near names where there is none."""
  if name not in METHODS:
    raise UserError(f'there is no method {name!r}; {did_you_mean(name, list_methods())}')
  return METHODS[name]


class Explanation(NamedTuple):
  """What `explain` gives.

  Attributes:
    maps: (B, H, W) in [0, 1].
    constant: (B,) bool, the maps that are constant, and therefore all zero.
    targets: int32 (B,), the class that each map explains.
    logits: (B, K); (B, 1), the scores, where a score of one's own is explained.
    queries: forward passes that one image cost, the mean over images where they differ.
    image_queries: int32 (B,), those of each image.
    values: (B, H, W), the signed values of which the maps show the support: occlusion's drops,
      RISE's gains, integrated gradients; below 0 lies what speaks against the class. None for
      methods without a sign.
    delta: (B,), for integrated gradients: |sum of the attributions - (score of the image - score
      of the baseline)| over the size of that difference; None for others.
    shown: what was explained, for `save`.
  """

  maps: jax.Array
  constant: jax.Array
  targets: jax.Array
  logits: jax.Array
  queries: int
  image_queries: jax.Array | np.ndarray
  values: jax.Array | None = None
  delta: jax.Array | None = None
  shown: Shown = Shown()

  def save(self, path: str | os.PathLike[str], images: Any = None) -> list[Path]:
    """Lays the maps over their pictures, in full resolution, and writes them.

    Args:
      path: a file that ends in .png, .jpg, .jpeg or .webp; of several pictures 'out.png' becomes
        out_1.png, out_2.png and so on. Or a folder (it is there, or its name has no ending), where
        each gets the name of its picture, as PNG or, from 4 megapixels, as JPEG.
      images: floats (B, H, W, C) in [0, 1] to lay the maps over; needed where such were explained.

    Returns:
      The files that were written.

    Raises:
      UserError: no such format, images that do not belong to the maps, a picture that is gone, or
        nowhere to write.
    """
    return shown.save(self.shown, self.maps, path, images)


def explain(
  model: Any,
  images: Any,
  method: str = 'group_cam',
  targets: Any = None,
  *,
  key: jax.Array | None = None,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
  **options: Any,
) -> Explanation:
  """Runs a method by name.

  Args:
    model: as `tap` takes it.
    images: floats (B, H, W, C) in [0, 1]; or pictures, where the model is a `Classifier`: a file, a
      folder, a glob pattern, a Pillow image or a list of these, read and resized as `predict` does.
    method: one of `list_methods()`.
    targets: class indices, (B,) or one for all; by default the predicted classes.
    layer: path of a module, for methods that look at one.
    grid: (rows, columns) of a layer that gives tokens, for the same methods.
    key: `jax.random.key`, the source of all chance (methods without chance draw nothing from
      it); `jax.random.key(0)` by default.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; as `tap` takes it.
    score: what is explained instead of a class; as `tap` takes it.
    **options: the method's own.

  Returns:
    Maps and what belongs to them.

  Raises:
    UserError: an unknown method or option, a layer for a method that looks at none, logits or
      gradients that are not finite, or what else the method cannot explain.
  """
  chosen = get_method(method)
  unknown = [name for name in options if name not in chosen.options()]
  if unknown:
    known = ', '.join(chosen.options())
    raise UserError(f'{method} has no option {unknown[0]!r}; it has {known}')
  if not chosen.needs_layer and (layer is not None or grid is not None):
    given = 'layer' if layer is not None else 'grid'
    raise UserError(f'{method} looks at no layer; leave {given} out')
  asked = _Question(chosen, as_key(key), layer, grid, output, score, options)
  if shown.are_pictures(images):
    found = _of_pictures(asked, model, shown.views_of(model, images), targets)
  else:
    found = asked(model, images, targets)
  checking.warn_if_probable(method, look_probable(found.logits))
  return found


class _Question(NamedTuple):
  """What is asked of every batch; the arguments of `explain`."""

  method: Method
  key: jax.Array | None
  layer: str | None
  grid: tuple[int, int] | None
  output: str | None
  score: Callable[[Any], jax.Array] | None
  options: dict[str, Any]

  def rows(self) -> dict[str, Any]:
    """What has a row an image: batches of fills, and keys."""
    given = self.options | {'key': self.key}
    return {name: value for name, value in given.items() if checking.has_rows(value)}

  def at(self, places: np.ndarray) -> _Question:
    """The same question of some of the images."""
    cut = {name: value[places] for name, value in self.rows().items() if len(value) > 1}
    key = cut.pop('key', self.key)
    return self._replace(key=key, options=self.options | cut)

  def __call__(self, model: Any, images: Any, targets: Any) -> Explanation:
    method, layer, grid, arguments = self.method, self.layer, self.grid, dict(self.options)
    point, images, targets = prepare(
      model, images, targets, layer, grid, output=self.output, score=self.score
    )
    logits = logits_once(point, images)
    classes = resolve_targets(logits, targets)
    if method.needs_layer:
      arguments |= {'layer': layer, 'grid': grid}
    if method.needs_key:
      arguments['key'] = jax.random.key(0) if self.key is None else self.key
    found = method.detail(point, images, classes, **arguments)
    each = _queries(method, point, images, self.options, found.steps)
    constant, seen = constant_maps(found.maps), Shown(by_pixel=method.by_pixel)
    said = classes, logits, _mean(each), each, found.values, found.delta
    return Explanation(found.maps, constant, *said, seen)


def _of_pictures(asked: _Question, model: Any, views: tuple[Any, ...], targets: Any) -> Explanation:
  """A batch at a time, filled up with the last picture: one program, and few pictures in memory."""
  count, size = len(views), min(len(views), _TOGETHER)
  if targets is not None:
    targets = np.broadcast_to(np.asarray(whole_targets(targets, count)), (count,))
  checking.check_rows(asked.rows(), count)
  parts = []
  for first in range(0, count, size):
    pixels = [view.look().pixels for view in views[first : first + size]]
    pixels = np.stack(pixels + pixels[-1:] * (size - len(pixels)))
    places = np.minimum(np.arange(first, first + size), count - 1)
    parts.append(asked.at(places)(model, pixels, None if targets is None else targets[places]))
  joined = jax.tree.map(
    lambda *rows: jnp.concatenate(rows)[:count], *(part._replace(queries=None) for part in parts)
  )
  return joined._replace(
    queries=_mean(joined.image_queries), shown=Shown(views, asked.method.by_pixel)
  )


def _queries(
  method: Method, point: Tap, images: jax.Array, options: dict[str, Any], steps: Any
) -> np.ndarray:
  """Forward passes that each image cost, int32 (B,)."""
  filled, shape = method.options() | options, tuple(images.shape[1:])
  if method.needs_layer:
    filled['channels'] = point.feature_shape(images)[-1]
  if steps is None or isinstance(steps, Tracer):
    each = [method.queries(shape, filled)] * len(images)
  else:
    each = [method.queries(shape, filled | {'steps': int(n)}) for n in np.asarray(steps)]
  return np.ceil(each).astype(np.int32)


def _mean(each: Any) -> int:
  return math.ceil(np.asarray(each).mean())  # in float64: a mean of 50.000004 is no 51
