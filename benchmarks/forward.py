"""Speed of a model on this machine, beside the authors' PyTorch code in the same run.

  git clone https://github.com/wofmanaf/ResT
  python benchmarks/forward.py --official ResT --official_python PYTHON_WITH_TORCH

The two take turns, one call each, so a machine that slows down slows both; the figure to quote is
the median of the ratios pair by pair. Without `--official` only this project is timed.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.models import create_model


def compile_ours(name: str, batch: int, size: int, backward: bool):
  """The jitted call and the seconds that its tracing and compilation took."""
  model = create_model(name)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, 3)), jnp.float32)
  init = jax.jit(lambda key: model.init({'params': key}, images[:1], train=False))
  variables = init(jax.random.key(0))

  def loss(params):
    logits, new = model.apply(
      {**variables, 'params': params}, images, train=True, mutable=['batch_stats']
    )
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), new

  if backward:
    step = jax.jit(lambda v: jax.grad(loss, has_aux=True)(v['params']))
  else:
    step = jax.jit(lambda v: model.apply(v, images, train=False))
  start = time.perf_counter()
  compiled = step.lower(variables).compile()
  seconds = time.perf_counter() - start
  return lambda: jax.block_until_ready(compiled(variables)), seconds


class Peer:
  """The authors' model in a process of its own."""

  def __init__(self, args, name: str):
    worker = Path(__file__).with_name('official_worker.py')
    command = [args.official_python, str(worker), '--official', args.official, '--model', name]
    command += ['--batch', str(args.batch), '--size', str(args.size)]
    command += ['--backward'] if args.backward else []
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self.version = self._read()

  def _read(self) -> str:
    line = self.process.stdout.readline()  # type: ignore[union-attr]
    if not line:
      sys.exit("the authors' model did not start; see the lines above")
    return line.strip()

  def __call__(self) -> float:
    self.process.stdin.write('\n')  # type: ignore[union-attr]
    self.process.stdin.flush()  # type: ignore[union-attr]
    return float(self._read())

  def close(self) -> None:
    self.process.stdin.close()  # type: ignore[union-attr]
    self.process.wait()


def timed(call) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def measure(args, name: str) -> str:
  """One row of the table."""
  ours, compile_seconds = compile_ours(name, args.batch, args.size, args.backward)
  ours()
  peer = Peer(args, name) if args.official else None
  mine, theirs = [], []
  for _ in range(args.repeats):
    mine.append(timed(ours))
    theirs.append(peer() if peer else float('nan'))
  if peer:
    peer.close()
    print(f'peer: {peer.version}', file=sys.stderr)
  ratios = sorted(b / a for a, b in zip(mine, theirs, strict=True))
  rate, peer_rate = (args.batch / statistics.median(t) for t in (mine, theirs))
  return (
    f'| {name} | {rate:.1f} | {peer_rate:.1f} | {statistics.median(ratios):.2f} '
    f'({ratios[0]:.2f}-{ratios[-1]:.2f}) | {compile_seconds:.1f} |'
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--models', nargs='+', default=['rest_small', 'restv2_tiny'])
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--backward', action='store_true', help='time the gradient of all parameters')
  parser.add_argument('--official', help='checkout of github.com/wofmanaf/ResT')
  parser.add_argument('--official_python', default=sys.executable, help='interpreter with torch')
  args = parser.parse_args()
  what = 'forward and backward' if args.backward else 'forward'
  print(
    f'{what}, batch {args.batch}, {args.size} px, float32, jax {jax.__version__}, '
    f'{jax.devices()[0].device_kind}, median of {args.repeats}'
  )
  print("| model | img/s | authors' img/s | ratio (min-max) | compilation, s |")
  print('|---|---|---|---|---|')
  for name in args.models:
    print(measure(args, name), flush=True)


if __name__ == '__main__':
  main()
