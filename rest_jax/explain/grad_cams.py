"""Class activation maps from a layer's map and the gradient there, and from the map alone.

The ones of `gradient_cam` need one gradient. Smooth Grad-CAM++ takes several, EigenCAM none.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rest_jax.explain.gradients import NOISE, check_samples
from rest_jax.explain.maps import ROUNDING, finish, peak
from rest_jax.explain.methods import method
from rest_jax.explain.queries import chunked, layer_gradient, only_finite, pick, resolve_targets
from rest_jax.explain.taps import Tap
from rest_jax.ops.platform import jit

Combine = Callable[..., jax.Array]


def gradient_cam(
  *, source: str, title: str | None = None
) -> Callable[[Combine], Callable[..., jax.Array]]:
  """Decorator: a CAM method from what it makes of a layer's map and the gradient there.

  The function takes `features`, the map A, and `gradients`, that of the target's logit with respect
  to it, float32 (B, h, w, K) each, and options of its own by keyword, numbers or names. It gives
  (B, h, w) and stands at a module's top level, for it is part of the program.

  Args:
    source: the paper.
    title: the method's name as the paper writes it; the function's name in words by default.

  Returns:
    A decorator; the function it makes is a method as `methods.method` makes them.
  """

  def add(combine: Combine) -> Callable[..., jax.Array]:
    @functools.wraps(combine)
    def cam(point, images, targets, query_batch, **options):
      own = tuple(sorted(options.items()))
      return _combined(point, images, targets, combine, own, query_batch)

    parameters = inspect.signature(combine).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    given = [
      inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
      for name in ('point', 'images', 'targets', 'query_batch')
    ]
    vars(cam)['__signature__'] = inspect.Signature([*given, *own])
    return method(title=title, source=source, queries=2, layer=True, by_gradient=True)(cam)

  return add


@functools.partial(jit, static_argnames=('combine', 'own', 'query_batch'))
def _combined(point: Tap, images, targets, combine: Combine, own, query_batch: int) -> jax.Array:
  """Maps (B, H, W); `combine` and its options `own`, as pairs, are part of the program."""

  def part(item):
    chunk, classes = item
    seen = layer_gradient(point, chunk, classes)
    return finish(combine(seen.features, seen.gradients, **dict(own)), images.shape[1:3])

  return chunked(part, (images, targets), query_batch)


@gradient_cam(title='Grad-CAM', source='Selvaraju et al. 2017')
def grad_cam(features: jax.Array, gradients: jax.Array) -> jax.Array:
  """ReLU(sum over k of w_k A_k), w_k the mean over the plane of the logit's gradient.

  Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
  Localization", ICCV 2017, arXiv 1610.02391, equations 1 and 2.
  """
  weights = jnp.mean(gradients / peak(gradients), axis=(1, 2), keepdims=True)
  return jax.nn.relu(jnp.sum(weights * features, axis=-1))


@gradient_cam(title='HiResCAM', source='Draelos and Carin 2020')
def hires_cam(features: jax.Array, gradients: jax.Array) -> jax.Array:
  """ReLU(sum over k of dS/dA_k A_k), element by element.

  Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
  neural networks", arXiv 2011.08891, equation 3.
  """
  return jax.nn.relu(jnp.sum(gradients / peak(gradients) * features, axis=-1))


@gradient_cam(title='LayerCAM', source='Jiang et al. 2021')
def layer_cam(features: jax.Array, gradients: jax.Array) -> jax.Array:
  """ReLU(sum over k of ReLU(dS/dA_k) A_k), element by element.

  Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE
  Transactions on Image Processing 30 (2021), equations 6 and 7.
  """
  weights = jax.nn.relu(gradients / peak(gradients))
  return jax.nn.relu(jnp.sum(weights * features, axis=-1))


@gradient_cam(title='XGrad-CAM', source='Fu et al. 2020')
def xgrad_cam(features: jax.Array, gradients: jax.Array) -> jax.Array:
  """ReLU(sum over k of w_k A_k), w_k the mean of the gradient weighted by A_k.

  w_k = sum(A_k dS/dA_k) / sum(A_k), sums over the plane; 0 for a channel that sums to 0
  (to rounding, measured by the sum of its sizes). Fu et al., "Axiom-based Grad-CAM: Towards
  Accurate Visualization and Explanation of CNNs", BMVC 2020, arXiv 2008.02312, equation 8.
  """
  features = features / peak(features)
  total, sizes, weighted = (
    jnp.sum(x, axis=(1, 2), keepdims=True)
    for x in (features, jnp.abs(features), features * (gradients / peak(gradients)))
  )
  none = jnp.abs(total) <= ROUNDING * sizes
  weights = jnp.where(none, 0, weighted / jnp.where(none, 1, total))
  return jax.nn.relu(jnp.sum(weights * features, axis=-1))


@gradient_cam(title='Grad-CAM++', source='Chattopadhay et al. 2018')
def grad_cam_pp(features: jax.Array, gradients: jax.Array) -> jax.Array:
  """ReLU(sum over k of w_k A_k), w_k the sum of alpha ReLU(gradient) over the plane.

  Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep
  Convolutional Networks", WACV 2018, arXiv 1710.11063, equations 10 and 19.

  The explained score is Y = exp(S), S being the logit, whose second and third derivatives follow
  from the first for a layer that is linear from there on. With g = dS/dA equation 19 is
  alpha_ij = g_ij^2 / (2 g_ij^2 + (sum over ab of A_ab) g_ij^3) = 1 / (2 + (sum of A) g_ij), and 0
  where g is 0. The factor exp(S) of dY/dA cancels in the normalisation of the map, so it is left
  out and cannot overflow. The paper has layers after a ReLU in mind: where a channel's sum is
  negative, 2 + (sum of A) g may be 0, and is taken as no weight.
  """
  weights = plus_plus_weights(features, gradients)
  return jax.nn.relu(jnp.sum(weights * features, axis=-1))


def plus_plus_weights(features: jax.Array, gradients: jax.Array) -> jax.Array:
  """Weights of the channels by equations 5 and 19: (B, h, w, K) twice -> (B, 1, 1, K).

  They are relative to the largest gradient of the image, a factor of the whole map.
  """
  below = 2 + jnp.sum(features, axis=(1, 2), keepdims=True) * gradients
  alpha = jnp.where(below == 0, 0, 1 / jnp.where(below == 0, 1, below))
  raised = jax.nn.relu(gradients / peak(gradients))  # 0 where the gradient is 0, so alpha need not
  return jnp.sum(alpha * raised, axis=(1, 2), keepdims=True)


@method(
  title='Smooth Grad-CAM++',
  source='Omeiza et al. 2019',
  queries=lambda shape, options: 2 * options['samples'] + 1,
  layer=True,
  by_gradient=True,
)
def smooth_grad_cam_pp(
  point: Tap,
  images: jax.Array,
  targets: jax.Array | None,
  keys: jax.Array,
  query_batch: int,
  *,
  samples: int = 16,
  noise: float = NOISE,
) -> jax.Array:
  """Grad-CAM++ with the three derivatives averaged over noisy copies of the image.

  Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep
  Convolutional Neural Network Models", arXiv 1908.01224, equations 11 to 13.

  The derivatives of Y = exp(S) at the layer are exp(S) g, exp(S) g^2 and exp(S) g^3, g = dS/dA;
  exp(S) is taken relative to the greatest of the image's samples, a factor that cancels. A is the
  map of the image without noise.

  Args:
    key: of the noise, which is the same for every image up to its size; jax.random.key(0) by
      default. Or (B,) keys, one an image.
    samples: noisy copies of each image.
    noise: deviation of the noise over the image's range (its largest less its least value).
  """
  check_samples(samples, noise)
  return _smooth(point, images, targets, keys, jnp.float32(noise), samples, query_batch)


@functools.partial(jit, static_argnames=('samples', 'query_batch'))
def _smooth(point: Tap, images, targets, keys, noise, samples: int, query_batch: int) -> jax.Array:
  def part(item):
    chunk, classes, key = item
    logits, features = point.perturbed(chunk)
    classes = resolve_targets(logits, classes)
    deviation = noise * jnp.ptp(chunk, axis=(1, 2, 3), keepdims=True)

    def add(total, sample):
      draws = jax.vmap(_noise, (0, None, None))(key, sample, chunk.shape[1:])
      seen = layer_gradient(point, chunk + deviation * draws, classes)
      return _accumulate(total, seen.gradients, pick(seen.logits, classes)), None

    zeros = jnp.zeros_like(features)
    start = Sums(jnp.full_like(deviation, -jnp.inf), jnp.zeros_like(deviation), zeros, zeros, zeros)
    sums, _ = jax.lax.scan(add, start, jnp.arange(samples))
    maps = jax.nn.relu(jnp.sum(_smooth_weights(features, sums) * features, axis=-1))
    return finish(only_finite(maps, logits), images.shape[1:3])

  return chunked(part, (images, targets, keys), query_batch)


def _noise(key: jax.Array, sample: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.normal(jax.random.fold_in(key, sample), shape)


class Sums(NamedTuple):
  """Sums over the samples of exp(S - top) (g / peak)^n, n = 1, 2, 3, (B, h, w, K) each.

  `top` is the greatest S so far and `peak` the greatest |g|, (B, 1, 1, 1) each: neither exp(S) nor
  a power of g then leaves the range of float32, and both cancel in the end.
  """

  top: jax.Array
  peak: jax.Array
  first: jax.Array
  second: jax.Array
  third: jax.Array


def _accumulate(sums: Sums, gradients: jax.Array, scores: jax.Array) -> Sums:
  scores = scores[:, None, None, None]
  top = jnp.maximum(sums.top, scores)
  largest = jnp.maximum(sums.peak, jnp.max(jnp.abs(gradients), axis=(1, 2, 3), keepdims=True))
  unit = jnp.where(largest > 0, largest, 1)
  old, new = jnp.exp(sums.top - top), jnp.exp(scores - top)
  shrink, gradients = sums.peak / unit, gradients / unit
  powers = (sums.first, sums.second, sums.third)
  made = [old * s * shrink**n + new * gradients**n for n, s in enumerate(powers, 1)]
  return Sums(top, largest, *made)


def _smooth_weights(features: jax.Array, sums: Sums) -> jax.Array:
  """Equations 11 to 13 with equation 10 of Grad-CAM++: (B, h, w, K) -> (B, 1, 1, K).

  alpha = D2 / (2 D2 + (sum of A) D3), D2 and D3 the mean second and third derivatives at the same
  place; 0 where that is no number.
  """
  total = jnp.sum(features, axis=(1, 2), keepdims=True)
  below = 2 * sums.second + total * sums.peak * sums.third
  alpha = jnp.where(below == 0, 0, sums.second / jnp.where(below == 0, 1, below))
  return jnp.sum(alpha * jax.nn.relu(sums.first), axis=(1, 2), keepdims=True)


@method(title='EigenCAM', source='Muhammad and Yeasin 2020', queries=1, layer=True)
def eigen_cam(point: Tap, images: jax.Array, query_batch: int) -> jax.Array:
  """The layer's map, centred, projected on its first right singular vector, whatever the class.

  Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
  arXiv 2008.00299, section III.

  Principal components are those of centred data: without it the first one is mostly the mean over
  the plane. A singular vector's sign is arbitrary; the one is taken for which the projection is
  positive where its size is largest: what stands out is lit, whether or not maps are 0 or more.

  Args:
    targets: checked, and without effect.
  """
  return _eigen(point, images, query_batch)


@functools.partial(jit, static_argnames='query_batch')
def _eigen(point: Tap, images: jax.Array, query_batch: int) -> jax.Array:
  def part(chunk):
    logits, features = point.perturbed(chunk)
    return finish(only_finite(first_component(features), logits), images.shape[1:3])

  return chunked(part, images, query_batch)


def first_component(features: jax.Array) -> jax.Array:
  """s_1 u_1 of the centred map as a matrix (h w, K), up to a positive factor.

  The vector comes from the smaller of the two Gram matrices. A map that is the same everywhere, to
  rounding, has no component: 0.

  Args:
    features: float32 (B, h, w, K).

  Returns:
    float32 (B, h, w), the value of the largest size positive.
  """
  matrix = features.reshape(features.shape[0], -1, features.shape[-1])
  # Neither the direction nor the normalised result depends on the scale; squares may overflow.
  matrix = matrix / peak(matrix)
  matrix = matrix - jnp.mean(matrix, axis=1, keepdims=True)
  flat = jnp.max(jnp.abs(matrix), axis=(1, 2), keepdims=True) <= ROUNDING  # of the peak, now 1
  matrix = jnp.where(flat, 0, matrix)
  matrix = matrix / peak(matrix)
  if matrix.shape[1] <= matrix.shape[2]:
    gram = jnp.einsum('bik,bjk->bij', matrix, matrix, precision='highest')
    values, vectors = jnp.linalg.eigh(gram)
    projection = vectors[..., -1] * jnp.sqrt(jnp.maximum(values[:, -1:], 0))
  else:
    gram = jnp.einsum('bik,bil->bkl', matrix, matrix, precision='highest')
    vectors = jnp.linalg.eigh(gram)[1]
    projection = jnp.einsum('bik,bk->bi', matrix, vectors[..., -1], precision='highest')
  largest = jnp.argmax(jnp.abs(projection), axis=1, keepdims=True)
  turned = jnp.where(jnp.take_along_axis(projection, largest, axis=1) < 0, -1, 1)
  return (projection * turned).reshape(features.shape[:3])
