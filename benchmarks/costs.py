"""What the main compiled functions cost by XLA's count, and how often they compile.

  python -m benchmarks.costs            # prints what they cost now
  python -m benchmarks.costs --record   # and makes it what tests/test_cost_guard.py compares with

Operations and bytes are those of the programs as traced, before XLA optimises them: nothing is
compiled for them, and they do not depend on the machine. The body of a loop counts once. The number
of compilations is that of a call in a new process, and of a second call with other values.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from benchmarks.ours.programs import count
from rest_jax import attacks, explain
from rest_jax.attacks.queries import image_keys
from rest_jax.defend.denoise import denoiser
from rest_jax.explain import metrics
from rest_jax.explain.group_cams import Settings, by_order
from rest_jax.models import create_model
from rest_jax.ops import use_form

RECORDED = Path(__file__).resolve().parents[1] / 'tests' / 'cost_guard.json'
COUNTED = {'flops': 'flops', 'bytes': 'bytes accessed'}
_SMALL: dict[str, Any] = dict(widths=(16, 32, 64, 128), depths=(1, 1, 1, 1), num_classes=10)
_compiled = 0


def _count_compilation(event: str, duration_secs: float, **kwargs: str | int) -> None:
  global _compiled
  _compiled += event == '/jax/core/compile/backend_compile_duration'


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


# ---- programs -----------------------------------------------------------------------------------


def features(kernel: jax.Array, images: jax.Array) -> jax.Array:
  """The map of a network of two layers."""
  return jax.nn.relu(jax.lax.conv_general_dilated(
    images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  ))  # fmt: skip


def head(matrix: jax.Array, maps: jax.Array) -> jax.Array:
  """Its logits."""
  return jnp.mean(maps, axis=(1, 2)) @ matrix


def toy(seed: int = 0) -> tuple[Partial, Partial]:
  """The two halves of a network of two layers, with its weights as data."""
  rng = np.random.default_rng(seed)
  kernel, matrix = rng.standard_normal((3, 3, 3, 8)), rng.standard_normal((8, 5))
  return (
    Partial(features, jnp.asarray(kernel, jnp.float32)),
    Partial(head, jnp.asarray(matrix, jnp.float32)),
  )


def whole(pair: tuple[Partial, Partial]) -> Partial:
  """The network as one function."""
  return Partial(_whole, *pair)


def _whole(first: Partial, second: Partial, images: jax.Array) -> jax.Array:
  return second(first(images))


def pictures(batch: int, size: int = 12, seed: int = 0) -> jax.Array:
  """Images of noise in [0, 1]."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.random((batch, size, size, 3), np.float32))


def forward() -> Any:
  """A small ResT, evaluation mode."""
  module = create_model('rest_lite', **_SMALL)
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
  return jax.jit(lambda v, x: module.apply(v, x, train=False)).lower(variables, images)


def training_step() -> Any:
  """The step of configs/digit_scenes.py with a smaller model."""
  from rest_jax.train import parallel, pipeline
  from rest_jax.train.command import load_config
  from rest_jax.train.task import build_task

  config = load_config('digit_scenes')
  overrides = dict(widths=(8, 16, 32, 64), depths=(1, 1, 1, 1), reductions=(4, 2, 1, 1))
  with config.unlocked():
    config.model.overrides = overrides
    config.data.image_size, config.train.batch_size = 32, 4
  mesh = parallel.make_mesh(jax.devices()[:1])
  plan = pipeline.make_plan(config, 1000, mesh)
  task = build_task(config, plan, mesh, tuple(map(str, range(10))))
  batch = {
    'image': jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8),
    'label': jax.ShapeDtypeStruct((4,), jnp.int32),
  }
  return task.train_step.lower(task.template, batch)


def group_cam() -> Any:
  """Group-CAM of two images, all queries in one pass."""
  settings = Settings(4, 'paper', 70.0, 5, 2.0, 10)
  return by_order.lower(explain.tap(toy()), pictures(2), None, settings)


def pgd_step() -> Any:
  """A step of PGD: one forward and one backward pass."""
  algorithm, images = attacks.PGD(steps=5), pictures(4)
  model, labels, eps = whole(toy()), jnp.zeros(4, jnp.int32), jnp.full(4, 0.1)
  keys = image_keys(jax.random.key(0), 4)
  state = jax.eval_shape(functools.partial(algorithm.init, model), images, labels, eps, keys)
  return jax.jit(algorithm.step).lower(model, state)


def insertion_deletion() -> Any:
  """Both curves of two images, all points in one pass."""
  from rest_jax.explain.metrics.faithfulness import _curves

  images, points = pictures(2), 5
  turns, share = jnp.zeros((2, 12, 12), jnp.int32), jnp.zeros((2, points))
  point = explain.tap(toy())
  return _curves.lower(
    point, images, (images, images), turns, None, share, points - 1, 2 * 2 * points
  )


def denoise() -> Any:
  """JPEG at half of its strength."""
  return jax.jit(lambda d, x: d(x)).lower(denoiser('jpeg', 0.5), pictures(2, 32))


PROGRAMS: dict[str, Callable[[], Any]] = {
  'forward': forward,
  'training_step': training_step,
  'group_cam': group_cam,
  'pgd_step': pgd_step,
  'insertion_deletion': insertion_deletion,
  'denoise': denoise,
}


def cost(name: str) -> dict[str, float]:
  """Operations and bytes of a program as traced, in the form for CPUs."""
  with use_form('fast'):
    lowered = PROGRAMS[name]()
  return {what: count(lowered, key) for what, key in COUNTED.items()}


# ---- compilations -------------------------------------------------------------------------------


def _attack(seed: int) -> None:
  labels = np.arange(4, dtype=np.int32)
  images = np.asarray(pictures(4, seed=seed))
  attacks.pgd(whole(toy(seed)), images, labels, key=jax.random.key(seed), eps=0.1, steps=2)


def _metric(seed: int) -> None:
  maps = np.random.default_rng(seed).random((2, 12, 12), np.float32)
  metrics.insertion_deletion(toy(seed), pictures(2, seed=seed), maps, pixels_per_step=36)


CALLS: dict[str, Callable[[int], Any]] = {
  'group_cam': lambda seed: explain.group_cam(toy(seed), pictures(2, seed=seed), groups=4),
  'pgd': _attack,
  'insertion_deletion': _metric,
  'denoise': lambda seed: denoiser('jpeg', 0.5)(pictures(2, 32, seed)),
}


def compilations(name: str) -> dict[str, int]:
  """How many programs a first call compiles, and a second one with other values."""
  found = []
  for seed in (0, 1):
    before = _compiled
    jax.block_until_ready(CALLS[name](seed))
    found.append(_compiled - before)
  return dict(zip(('first', 'again'), found, strict=True))


def all_costs() -> dict[str, Any]:
  """Everything, as it is recorded."""
  counted = {name: compilations(name) for name in CALLS}  # first: nothing is compiled yet
  return {
    'jax': jax.__version__,
    'compilations': counted,
    'costs': {name: cost(name) for name in PROGRAMS},
  }


def main() -> None:
  """Prints, and records where it is told to."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--record', action='store_true', help=f'writes {RECORDED.name}')
  args = parser.parse_args()
  text = json.dumps(all_costs(), indent=1)
  print(text)
  if args.record:
    RECORDED.write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
