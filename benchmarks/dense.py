"""A detector on a large canvas: time and peak memory beside torchvision's RetinaNet.

  python benchmarks/dense.py --peer_python PYTHON_WITH_TORCHVISION

RetinaNet on ResT (`--model`, without it rest_small) and torchvision's retinanet_resnet50_fpn, 80
classes, batch 1, the same canvas, random weights, ten objects. Forward is all that evaluation does
(NMS too), a step is loss, gradients and an AdamW update. Each measurement is a process of its own,
so that its peak is its own; the libraries take turns. The peak is the largest resident size less
what the process had before the first run; compile time stands by itself.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

OBJECTS = 10
CLASSES = 80


def resident():
  """Bytes that the process has had in memory at most."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(run, repeats):
  """{'compile': seconds of the first call, 'times': of the others, 'peak': bytes}."""
  before, began = resident(), time.perf_counter()
  run()
  first, times = time.perf_counter() - began, []
  for _ in range(repeats):
    began = time.perf_counter()
    run()
    times.append(time.perf_counter() - began)
  return {'first': first, 'times': times, 'peak': resident() - before}


def boxes_of(height, width):
  """Ten boxes (x1, y1, x2, y2) of several sizes inside of the canvas."""
  import numpy as np

  rng = np.random.default_rng(0)
  size = rng.uniform(40, 400, (OBJECTS, 2))
  start = rng.uniform(0, 1, (OBJECTS, 2)) * (np.array([width, height]) - size)
  return np.concatenate([start, start + size], 1).astype(np.float32)


def ours(args):
  """Our detector under jit."""
  import jax
  import jax.numpy as jnp
  import optax

  from rest_jax import create_detector
  from rest_jax.models.dense import Targets

  detector = create_detector(args.model, CLASSES, backbone={'bn_frozen': True})
  image = jax.random.normal(jax.random.key(0), (1, args.height, args.width, 3))
  small = jnp.zeros((1, 64, 64, 3))
  variables = jax.jit(detector.init)(jax.random.key(1), small)
  if args.what == 'forward':
    run = jax.jit(lambda v, x: detector.apply(v, x).scores)
    return timed(lambda: run(variables, image).block_until_ready(), args.repeats)
  targets = Targets(
    jnp.asarray(boxes_of(args.height, args.width))[None],
    jnp.arange(OBJECTS, dtype=jnp.int32)[None],
  )
  optimizer = optax.adamw(1e-4)

  def step(params, rest, state, x):
    def loss(params):
      losses, _ = detector.apply(
        {**rest, 'params': params}, x, targets, method='losses', mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(2)},
      )  # fmt: skip
      return sum(losses.values())

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  rest = {name: value for name, value in variables.items() if name != 'params'}
  held = [variables['params'], optimizer.init(variables['params'])]
  compiled = jax.jit(step, donate_argnums=(0, 2))

  def run_step():
    held[:] = jax.block_until_ready(compiled(held[0], rest, held[1], image))

  return timed(run_step, args.repeats)


def peer(args):
  """torchvision's detector with its transform taken out: the canvas is given."""
  import torch
  from torchvision.models.detection import retinanet_resnet50_fpn

  torch.manual_seed(0)
  model = retinanet_resnet50_fpn(
    weights=None, weights_backbone=None, num_classes=CLASSES, trainable_backbone_layers=5,
    min_size=args.height, max_size=args.width,
  )  # fmt: skip
  image = [torch.rand(3, args.height, args.width)]
  if args.what == 'forward':
    model.eval()

    def run():
      with torch.inference_mode():
        model(image)

    return timed(run, args.repeats)
  boxes = torch.from_numpy(boxes_of(args.height, args.width))
  targets = [{'boxes': boxes, 'labels': torch.arange(OBJECTS)}]
  optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

  def run_step():
    optimizer.zero_grad()
    sum(model(image, targets).values()).backward()
    optimizer.step()

  return timed(run_step, args.repeats)


def measure(side, what, args):
  """One measurement in a process of its own."""
  python = args.peer_python if side == 'peer' else sys.executable
  command = [python, __file__, '--side', side, '--what', what, '--model', args.model]
  command += ['--height', args.height, '--width', args.width, '--repeats', args.repeats]
  env = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[1])}
  out = subprocess.run(
    [str(word) for word in command], env=env, check=True, text=True, stdout=subprocess.PIPE
  )
  return json.loads(out.stdout.splitlines()[-1])


def compare(args):
  """Prints the table."""
  sides = ['ours', 'peer'] if args.peer_python else ['ours']
  print(f'{args.model}, {args.height}x{args.width}, batch 1, medians of {args.repeats}:')
  print('| | first call (s) | time (s) | peak (GB) |\n|---|---:|---:|---:|')
  for what in ('forward', 'step'):
    found = {}
    for side in sides:
      found[side] = measure(side, what, args)
      own = found[side]
      cells = (own['first'], median(own['times']), own['peak'] / 1e9)
      print(f'| {what}, {side} | ' + ' | '.join(f'{v:.2f}' for v in cells) + ' |', flush=True)
    if len(sides) == 2:
      speed = median(found['peer']['times']) / median(found['ours']['times'])
      memory = found['ours']['peak'] / found['peer']['peak']
      print(f'| {what}, ours beside the peer | | {speed:.2f} times as fast | {memory:.2f} |')


def main():
  """Compares, or measures one side."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--peer_python', help='an interpreter with torch and torchvision')
  parser.add_argument('--model', default='retinanet_rest_small')
  parser.add_argument('--height', type=int, default=800)
  parser.add_argument('--width', type=int, default=1344)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--side', choices=('ours', 'peer'))
  parser.add_argument('--what', choices=('forward', 'step'), default='forward')
  args = parser.parse_args()
  if args.side is None:
    compare(args)
  else:
    print(json.dumps({'ours': ours, 'peer': peer}[args.side](args)))


if __name__ == '__main__':
  main()
