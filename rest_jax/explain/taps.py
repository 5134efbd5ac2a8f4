"""Taps: the map that a layer gives, and the gradient there, with no change to the model.

`flax.linen.intercept_methods` records the output of the module at a path ('stage4/block1') and
adds a perturbation there; the derivative with respect to that perturbation, at zero, is the
gradient at the layer. Modules of NNX and Equinox are seen likewise (`rest_jax.foreign_layers`);
for whatever has no module at the place, a pair `(features_fn, head_fn)` does the same.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from rest_jax import layers
from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.explain.outputs import as_logits, as_scores, check_output, probabilities
from rest_jax.layers import describe, find_plane, replace_plane


@dataclasses.dataclass(frozen=True)
class Tap:
  """A model and the layer whose map is looked at; made by `tap`, an argument of jitted functions.

  Maps are float32 (B, h, w, K) whatever the model computes in. Tokens (B, N, K) are laid out as
  the rows of `grid`; where N is larger than it holds, the first ones (class and register tokens)
  are no part of the map and flow on as they are. Without `grid` the plane is inferred
  (`infer_grid`). A layer that gives several arrays is tapped at the one that is a map.

  A module that is called several times is tapped at its last call, as a PyTorch hook leaves it.

  Attributes:
    function: images -> logits, or images -> features of a pair; its weights are data.
    head: features -> logits of a pair.
    score: outputs -> one number an image, what is explained instead of a class; None for classes.
    layer: path of the module; None for the default (`resolve` tells which).
    grid: (rows, columns) of a layer that gives tokens; None: inferred.
    output: 'softmax' or 'sigmoid', what makes probabilities of logits; None: the sigmoid of one
      logit, the softmax of several.
    mean: mean colour of the classifier's normalisation, the value that it sees as 0; None where
      the model does not tell.
  """

  function: Partial
  head: Partial | None = None
  score: Partial | None = None
  layer: str | None = None
  grid: tuple[int, int] | None = None
  output: str | None = None
  mean: tuple[float, ...] | None = None

  def __call__(self, images: jax.Array) -> jax.Array:
    """Logits, float32 (B, K); with a score of one's own that, (B, 1)."""
    out = self.function(images)
    return self._read(out if self.head is None else self.head(out), images.shape[0])

  def probabilities(self, logits: jax.Array) -> jax.Array:
    """What `__call__` gave (B, K), as probabilities; a score of one's own as it is.

    Not a number in the whole row where one of its logits is not finite.
    """
    made = logits if self.score is not None else probabilities(logits, self.output)
    return jnp.where(jnp.isfinite(logits).all(-1, keepdims=True), made, jnp.nan)

  def features(self, images: jax.Array) -> jax.Array:
    """The layer's map, float32 (B, h, w, K); arguments and errors as `perturbed`."""
    return self.perturbed(images)[1]

  def perturbed(
    self, images: jax.Array, delta: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the model with something added at the layer.

    Args:
      images: floats (B, H, W, C).
      delta: (B, h, w, K), shape `feature_shape(images)`; None adds nothing.

    Returns:
      Logits (B, K) with the layer's output plus `delta` flowing on, and that output without
      `delta`, (B, h, w, K); both float32.

    Raises:
      UserError: the layer is not there, gives no map, or runs where it cannot be tapped.
    """
    if self.head is not None:
      features = self.function(images)
      plane = self._plane(features, images.shape)
      changed = self._add(features, delta, images.shape)
      return self._read(self.head(changed), images.shape[0]), plane
    path = self.resolve(images.shape)
    last = layers.survey(self.function, images.shape).calls[path]
    seen = []

    def watch(call: layers.Call) -> Any:
      if call.path != path:
        return call.output
      seen.append(call.output)
      return self._add(call.output, delta, images.shape) if len(seen) == last else call.output

    logits = layers.run_through(self.function, watch, images)
    return self._read(logits, images.shape[0]), self._plane(seen[-1], images.shape)

  def resolve(self, image_shape: tuple[int, ...]) -> str:
    """Name of the layer for images (B, H, W, C): the one asked for, or the default.

    Raises:
      UserError: there is no such layer, or no default.
    """
    if self.head is not None:
      return 'features'
    seen = layers.survey(self.function, image_shape)
    if self.layer is None:
      grid_of = lambda shape: self._grid(shape, image_shape)  # noqa: E731
      return layers.default_layer(seen, image_shape, grid_of, self.grid is not None)
    layers.check_layer(self.layer, seen)
    return self.layer

  def feature_shape(self, images: Any) -> tuple[int, int, int, int]:
    """(B, h, w, K) of the map, without running the model; errors as `perturbed`."""
    shape = tuple(images.shape)
    if self.head is None:
      native = layers.survey(self.function, shape).layers[self.resolve(shape)]
    else:
      out = jax.eval_shape(self.function, jax.ShapeDtypeStruct(shape, jnp.float32))
      native = self._array(out).shape
    return self._plane_shape(tuple(native), shape)

  def num_classes(self, image_shape: tuple[int, ...]) -> int:
    """Number of logits for images (B, H, W, C); 1 with a score of one's own."""
    images = jax.ShapeDtypeStruct(tuple(image_shape), jnp.float32)
    if self.head is not None:
      return jax.eval_shape(self, images).shape[1]
    seen = layers.survey(self.function, images.shape)
    return seen.columns(lambda out: self._read(out, images.shape[0]))

  def _read(self, out: Any, batch: int) -> jax.Array:
    return as_logits(out, batch) if self.score is None else as_scores(self.score, out, batch)

  def _grid(self, shape: tuple[int, ...], image_shape: tuple[int, ...]) -> tuple[int, int] | None:
    if self.grid is None:
      return infer_grid(shape[1], (image_shape[1], image_shape[2]))
    return self.grid if shape[1] >= math.prod(self.grid) else None

  def _array(self, out: Any) -> Any:
    plane = find_plane(out)
    if plane is None:
      raise UserError(
        f'{self.layer or "the layer"} gives {describe(out)}, not one map (B, h, w, C); '
        'name a layer, or write features_fn, so that it gives one'
      )
    return plane

  def _plane_shape(
    self, shape: tuple[int, ...], image_shape: tuple[int, ...]
  ) -> tuple[int, int, int, int]:
    what = f'{self.layer or "the layer"} gives {shape}'
    if shape[:1] != image_shape[:1]:
      raise UserError(
        f'{what} for {image_shape[0]} images, which is not a map an image (regions of a detector, '
        'windows); explain.list_layers names others'
      )
    if len(shape) == 4:
      if self.grid != shape[1:3] and _channels_first(shape, image_shape):
        raise UserError(
          f'{self.resolve(image_shape)} gives {shape} for images {image_shape[1:3]}, which seems '
          'to have its channels first; name a layer that has them last, or give a pair '
          '(features_fn, head_fn) whose features '
          f'are jnp.moveaxis(map, 1, -1); if they are last, say grid={shape[1:3]}'
        )
      return shape  # pyright: ignore[reportReturnType]
    if len(shape) != 3:
      raise UserError(f'{what}, which is no map (B, h, w, C); explain.list_layers names those')
    grid = self._grid(shape, image_shape)
    if grid is None and self.grid is None:
      raise UserError(f'{what}, tokens without a plane; say grid=(rows, columns)')
    if grid is None:
      raise UserError(f'{what}: a grid of {self.grid} holds more than its {shape[1]} tokens')
    return shape[0], *grid, shape[2]

  def _plane(self, out: Any, image_shape: tuple[int, ...]) -> jax.Array:
    out = self._array(out)
    shape = self._plane_shape(out.shape, image_shape)
    if out.ndim == 3:
      out = out[:, out.shape[1] - shape[1] * shape[2] :].reshape(shape)
    return out.astype(jnp.float32)

  def _add(self, out: Any, delta: jax.Array | None, image_shape: tuple[int, ...]) -> Any:
    plane = self._array(out)
    self._plane_shape(plane.shape, image_shape)
    if delta is None:
      return out
    delta = delta.astype(plane.dtype)
    if plane.ndim == 3:
      delta = delta.reshape(delta.shape[0], -1, delta.shape[-1])
      delta = jnp.pad(delta, ((0, 0), (plane.shape[1] - delta.shape[1], 0), (0, 0)))
    return replace_plane(out, plane, plane + delta)


jax.tree_util.register_dataclass(
  Tap,
  data_fields=['function', 'head', 'score'],
  meta_fields=['layer', 'grid', 'output', 'mean'],
)


def _channels_first(shape: tuple[int, ...], image_shape: tuple[int, ...]) -> bool:
  """Whether a map's last two axes have the shape of the images' plane and its first two not.

  Either reading that fits will do: only what cannot be (B, h, w, C) is refused. The last two fit
  where they are in the images' proportion, the first two where rounding may have led there.
  """
  _, first, second, third = shape
  height, width = image_shape[1:3]
  if second * width != third * height:
    return False
  off = abs(first * width - second * height)
  return off > (0 if height == width else max(height, width))


# Class and register tokens before those of the image.
_MOST_PREFIX = 5


def infer_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
  """The plane on which so many tokens lie.

  For a square image the square of N, or of N less one to five (class and register tokens), whose
  side is 2 or more; for any other, rows and columns that divide its sides by the same number.

  Args:
    tokens: N.
    size: (H, W) of the image.

  Returns:
    (rows, columns), None where there is none.
  """
  height, width = size
  for count in range(tokens, max(tokens - _MOST_PREFIX - 1, 0), -1):
    if height == width:
      rows = columns = math.isqrt(count)
    else:
      rows = math.isqrt(count * height // width)
      columns = count // max(rows, 1)
      if rows * width != columns * height or height % max(rows, 1):
        continue
    if rows * columns == count and min(rows, columns) > 1:
      return rows, columns
  return None


def tap(
  model: Any,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  *,
  output: str | None = None,
  score: Callable[[Any], jax.Array] | None = None,
) -> Tap:
  """Looks into a model at a layer.

  Args:
    model: a `Classifier`; any function of images that runs a module of Linen, NNX or
      Equinox inside; a pair `(features_fn, head_fn)`, `head_fn(features_fn(images))` being the
      logits; or a tap.
    layer: path of a module, such as 'stage4/block1'; `list_layers` names them. By default the
      smallest map of 7 x 7 or more among the model's stages (`layers.default_layer`), or what the
      model itself names (an attribute `default_layer`, as questions to detectors have it).
    grid: (rows, columns) of a layer that gives tokens (B, N, C) instead of a map; inferred where
      it can be (`infer_grid`).
    output: what makes probabilities of logits: 'softmax', or 'sigmoid' for each by itself
      (multi-label); by default the sigmoid of a single logit and the softmax of several.
    score: what is explained instead of a class: a function of the model's outputs, whatever they
      are, to one real number an image (B,), such as `lambda outputs: outputs['boxes'][:, 0, 4]`
      for a detection, `lambda outputs: outputs[:, 20:40, 8:16, 3].mean((1, 2))` for a part of a
      segmentation, or `lambda outputs: outputs[:, 0]` for a regression. Methods differentiate it,
      or compare its values, as they do with a class's logit and probability. A new lambda each
      time compiles anew.

  Returns:
    The tap; a tap that is given and not changed comes back as it is.

  Raises:
    UserError: no model, a layer's name together with a pair, an unknown output. What the model
      runs is looked at later, when the images' shape is known.
  """
  grid = _checked_grid(grid)
  of_score = None if score is None else as_function(score)
  if isinstance(model, Tap):
    changes: dict[str, Any] = {'layer': layer, 'grid': grid, 'output': output, 'score': of_score}
    changes = {name: value for name, value in changes.items() if value is not None}
    made = dataclasses.replace(model, **changes) if changes else model
  elif isinstance(model, tuple) and len(model) == 2:
    features, head = (_outside_jit(as_function(function)) for function in model)
    made = Tap(features, head, of_score, layer, grid, output)
  else:
    function = _outside_jit(as_function(model))
    layer = layer or getattr(model, 'default_layer', None)
    made = Tap(function, None, of_score, layer, grid, output, mean_of(model))
  check_output(made.output, made.score is not None)
  if made.head is not None and made.layer is not None:
    raise UserError(f'a pair (features_fn, head_fn) has one layer only, so no {made.layer!r}')
  return made


def list_layers(model: Any, image_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
  """Names what can be tapped.

  Args:
    model: as `tap` takes it.
    image_shape: (H, W, C) or (B, H, W, C); by default the classifier's input size.

  Returns:
    {path: shape of the output} of the modules that give maps (B, h, w, C) or tokens (B, N, C), in
    the order in which the model runs them.

  Raises:
    UserError: no image shape, or no module of Linen, NNX or Equinox in the model.
  """
  size = getattr(model, 'input_size', None)
  if image_shape is None:
    if size is None:
      raise UserError('list_layers needs image_shape=(H, W, C) for a model that is no Classifier')
    image_shape = (size, size, len(model.mean))
  shape = (1,) * (4 - len(image_shape)) + tuple(image_shape)
  point = tap(model)
  if point.head is not None:
    raise UserError('a pair (features_fn, head_fn) has one layer only; there is nothing to list')
  seen = layers.survey(point.function, shape)
  if not seen.layers:
    layers.check_layer('', seen)
  return {name: shape for name, shape in seen.layers.items() if len(shape) in (3, 4)}


def _checked_grid(grid: Any) -> tuple[int, int] | None:
  if grid is None:
    return None
  try:
    rows, columns = (operator.index(n) for n in grid)
  except (TypeError, ValueError):
    rows = columns = 0
  if min(rows, columns) < 1:
    raise UserError(f'a grid is (rows, columns), two positive integers, got {grid!r}')
  return rows, columns


def mean_of(model: Any) -> tuple[float, ...] | None:
  """The colour that a classifier's normalisation turns into 0; None where there is none."""
  if isinstance(model, Tap):
    return model.mean
  if isinstance(model, Partial) and model.args:
    model = model.args[0]
  mean = getattr(model, 'mean', None)
  is_colour = isinstance(mean, tuple) and all(isinstance(value, float) for value in mean)
  return mean if is_colour else None


def _outside_jit(function: Partial) -> Partial:
  """A jitted function hides its modules; what it wraps does not, and is jitted by us anyway."""
  if isinstance(function.func, type(_jitted)):
    inside = function.func.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
    return as_function(Partial(inside, *function.args, **function.keywords))
  return function


_jitted = jax.jit(lambda: None)
