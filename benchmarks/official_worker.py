"""Runs a model of the authors' repository in PyTorch: one timed call for each line on stdin.

Started by `benchmarks/forward.py`; needs nothing of rest_jax, so any Python with torch will do.
"""

import argparse
import sys
import time
import types

import torch


def provide_timm() -> None:
  """The four names that the authors' code takes from timm, where timm cannot be imported."""
  try:
    import timm.models.layers
    import timm.models.registry  # noqa: F401

    return
  except ImportError:
    pass

  class DropPath(torch.nn.Module):
    """Stochastic depth, as it acts in evaluation."""

    def __init__(self, rate: float = 0.0):
      super().__init__()
      self.rate = rate

    def forward(self, x):
      if self.training and self.rate:
        keep = torch.rand(x.shape[0], *(1,) * (x.ndim - 1)) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)
      return x

  layers, registry = (
    types.ModuleType('timm.models.layers'),
    types.ModuleType('timm.models.registry'),
  )
  layers.DropPath = DropPath
  layers.to_2tuple = lambda x: (x, x)
  layers.trunc_normal_ = lambda t, std=1.0: torch.nn.init.trunc_normal_(t, std=std)
  registry.register_model = lambda function: function
  for name in ('timm', 'timm.models'):
    sys.modules[name] = types.ModuleType(name)
  sys.modules['timm.models.layers'], sys.modules['timm.models.registry'] = layers, registry


def step(model, images, backward: bool) -> None:
  if not backward:
    with torch.inference_mode():
      model(images)
    return
  model.zero_grad()
  model(images).logsumexp(1).mean().backward()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--official', required=True, help="checkout of the authors' repository")
  parser.add_argument('--model', required=True)
  parser.add_argument('--batch', type=int, required=True)
  parser.add_argument('--size', type=int, required=True)
  parser.add_argument('--backward', action='store_true')
  args = parser.parse_args()
  provide_timm()
  sys.path.insert(0, args.official)
  from models import rest, rest_v2

  torch.manual_seed(0)
  builder = getattr(rest_v2 if args.model.startswith('restv2') else rest, args.model)
  model = builder().train(args.backward).to(memory_format=torch.channels_last)
  images = torch.randn(args.batch, 3, args.size, args.size)
  images = images.to(memory_format=torch.channels_last)
  step(model, images, args.backward)
  print(f'torch {torch.__version__}, {torch.get_num_threads()} threads', flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    step(model, images, args.backward)
    print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
  main()
