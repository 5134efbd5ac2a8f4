"""What band compression costs: parameters and time of a model with it over the model without.

  python benchmarks/band_compression.py [--case rest_small] [--batch 8] [--rounds 15]

For `rest_small` and `restv2_tiny` at 224 px and the model of configs/digit_scenes.py at 64: each
strategy after stage 1 with 8 bands, forward in evaluation mode and the gradient of the parameters.
The model without is timed in turn with the other in every round; a ratio is the median over the
rounds of the ratio within one, so that a change of the machine's speed touches both sides. On a
machine that others use too `--clock processor` counts the processor time of all threads instead.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.models.compression import STRATEGIES
from rest_jax.models.registry import create_model

CLOCKS = {'wall': time.perf_counter, 'processor': time.process_time}
CASES = {
  'rest_small': ('rest_small', 224, {}),
  'restv2_tiny': ('restv2_tiny', 224, {}),
  'digit_scenes': (
    'rest_lite',
    64,
    dict(widths=(32, 64, 128, 256), depths=(1, 1, 2, 1), reductions=(4, 2, 1, 1)),
  ),
}


def build(case: str, compression: str, args):
  """({'forward': call, 'gradient': call}, parameters, {kind: seconds of the first call})."""
  (name, size, overrides), batch = CASES[case], args.batch
  options = dict(strategy=compression, transform=args.transform)
  model = create_model(name, 10, compression=options, **overrides)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, 3)), jnp.float32)
  variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images[:1])

  keys = {'dropout': jax.random.key(0)}

  def loss(params, x):
    logits, _ = model.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats'], rngs=keys
    )
    return jnp.square(jnp.asarray(logits)).mean()

  calls, first = {}, {}
  for kind, function, weights in (
    ('forward', lambda v, x: model.apply(v, x, train=False), variables),
    ('gradient', jax.grad(loss), variables['params']),
  ):
    start = CLOCKS[args.clock]()
    compiled = jax.jit(function).lower(weights, images).compile()
    first[kind] = CLOCKS[args.clock]() - start
    calls[kind] = lambda compiled=compiled, weights=weights: jax.block_until_ready(
      compiled(weights, images)
    )
  sizes = [x.size for x in jax.tree.leaves(variables['params'])]
  return calls, sum(sizes), first


def seconds(call, clock) -> float:
  start = clock()
  call()
  return clock() - start


def compare(case: str, strategy: str, args) -> str:
  """One line of the table."""
  clock = CLOCKS[args.clock]
  plain, plain_parameters, plain_first = build(case, 'none', args)
  calls, parameters, first = build(case, strategy, args)
  cells = [case, strategy, f'{parameters / plain_parameters - 1:+.4%}']
  for kind in ('forward', 'gradient'):
    sides = plain[kind], calls[kind]
    pairs = [[seconds(call, clock) for call in sides] for _ in range(args.rounds + 1)][1:]
    ratio = np.median([b / a for a, b in pairs]) - 1
    cells += [f'{1e3 * np.median([a for a, _ in pairs]):.1f} ms', f'{ratio:+.1%}']
    cells.append(f'{plain_first[kind]:.1f} / {first[kind]:.1f} s')
  return '| ' + ' | '.join(cells) + ' |'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--case', nargs='+', default=list(CASES), choices=CASES)
  parser.add_argument('--strategy', nargs='+', default=STRATEGIES[1:], choices=STRATEGIES)
  parser.add_argument('--transform', default='dct', choices=('dct', 'fft'))
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--clock', default='wall', choices=CLOCKS)
  args = parser.parse_args()
  print(
    f'{jax.devices()[0].device_kind}, batch {args.batch}, transform {args.transform}, '
    f'{args.clock} time'
  )
  kinds = [f'{k}: plain | {k}: time | {k}: compile, plain / with' for k in ('forward', 'gradient')]
  print(f'| model | strategy | parameters | {" | ".join(kinds)} |\n|{"---|" * 9}')
  for case in args.case:
    for strategy in args.strategy:
      print(compare(case, strategy, args), flush=True)


if __name__ == '__main__':
  main()
