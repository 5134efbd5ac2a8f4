"""Cost of Group-CAM beside the model's own passes, in one run.

  python benchmarks/group_cam.py

Time: Group-CAM of one image against its G + 1 forward passes in the same chunks and one gradient
pass down to the layer; the two take turns, and the figure to quote is the median of the ratios
pair by pair. Memory: what XLA allocates for intermediate results, as the compiled programs
declare it. Throughput: a batch of images against one image at a time.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax import Classifier, create_model, explain
from rest_jax.explain.group_cams import Settings, by_order
from rest_jax.explain.queries import chunked, layer_gradient


def classifier(name: str, size: int) -> Classifier:
  """A model of the registry with random weights; time and memory do not depend on them."""
  module = create_model(name)
  images = jnp.zeros((1, size, size, 3))
  variables = jax.jit(lambda key: module.init({'params': key}, images, train=False))(
    jax.random.key(0)
  )
  return Classifier.create(name, variables, num_classes=1000, input_size=size)


def timed(call) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def take_turns(first, second, repeats: int) -> tuple[list[float], list[float]]:
  """Seconds of each of two calls, alternating."""
  timed(first), timed(second)
  pairs = [(timed(first), timed(second)) for _ in range(repeats)]
  return [a for a, _ in pairs], [b for _, b in pairs]


def ratio(ours: list[float], theirs: list[float]) -> str:
  """'median (least-greatest)' of the ratios pair by pair."""
  ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
  return f'{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})'


def megabytes(program) -> float:
  """Intermediate results of a compiled program."""
  return program.memory_analysis().temp_size_in_bytes / 2**20


def in_turn(point, images, groups: int, query_batch: int):
  """The G + 1 forward passes, in the chunks that Group-CAM has, and the gradient pass."""
  queries = jnp.broadcast_to(images, (groups + 1, *images.shape[1:]))
  gradients = layer_gradient(point, images, None).gradients
  return gradients, chunked(point, queries, query_batch)


def batch_and_gradient(point, images):
  """One forward pass of a batch and the gradient pass of one image."""
  return point(images), layer_gradient(point, images[:1], None).gradients


def compiled(function, *args, **static):
  """The compiled program, and the seconds that tracing and compiling took."""
  start = time.perf_counter()
  program = function.lower(*args, **static).compile()
  return program, time.perf_counter() - start


def one_image(args, point, image, batch, settings):
  """Prints compilation, memory and time of one image; returns the program."""
  sizes = dict(groups=args.groups, query_batch=args.query_batch)
  passes = jax.jit(in_turn, static_argnames=tuple(sizes))
  theirs, their_seconds = compiled(passes, point, image, **sizes)
  ours, seconds = compiled(by_order, point, image, None, settings)
  print(f'compilation: {seconds:.1f} s, the passes alone {their_seconds:.1f} s')
  plain, _ = compiled(jax.jit(batch_and_gradient), point, batch)
  print(
    f'memory: {megabytes(ours):.1f} MiB; a forward pass of batch {len(batch)} and the gradient '
    f'pass {megabytes(plain):.1f} MiB; ratio {megabytes(ours) / megabytes(plain):.3f}'
  )
  a, b = take_turns(lambda: ours(point, image, None), lambda: theirs(point, image), args.repeats)
  print(
    f'time: {statistics.median(a):.3f} s; {args.groups + 1} forward passes and the gradient pass '
    f'{statistics.median(b):.3f} s; ratio {ratio(a, b)}'
  )
  return ours


def many_images(args, point, images, settings, alone) -> None:
  """Prints the throughput of a batch beside that of one image at a time."""
  together, _ = compiled(by_order, point, images, None, settings)
  print(f'memory with {len(images)} images: {megabytes(together):.1f} MiB')
  a, b = take_turns(
    lambda: together(point, images, None),
    lambda: [alone(point, images[i : i + 1], None) for i in range(len(images))],
    max(1, args.repeats // 4),
  )
  print(
    f'throughput: {len(images) / statistics.median(a):.3f} images a second in a batch of '
    f'{len(images)}, {len(images) / statistics.median(b):.3f} one at a time; '
    f'time ratio {ratio(a, b)}'
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--model', default='rest_small')
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--groups', type=int, default=32)
  parser.add_argument('--query_batch', type=int, default=8)
  parser.add_argument('--batch', type=int, default=16, help='images for the throughput')
  parser.add_argument('--repeats', type=int, default=9)
  args = parser.parse_args()
  shape = (max(args.batch, args.query_batch), args.size, args.size, 3)
  images = jnp.asarray(np.random.default_rng(0).uniform(size=shape), jnp.float32)
  point = explain.tap(classifier(args.model, args.size))
  settings = Settings(args.groups, 'paper', 70.0, 51, 50.0, args.query_batch)
  print(
    f'{args.model}, {args.size} px, G = {args.groups}, query_batch {args.query_batch}, layer '
    f'{point.resolve(images.shape)}, jax {jax.__version__}, {jax.devices()[0].device_kind}'
  )
  alone = one_image(args, point, images[:1], images[: args.query_batch], settings)
  many_images(args, point, images[: args.batch], settings, alone)


if __name__ == '__main__':
  main()
