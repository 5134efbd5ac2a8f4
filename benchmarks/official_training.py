"""Training step of a model of the authors' repository in PyTorch, eager and compiled.

Started by `benchmarks/training_step.py`; needs nothing of rest_jax. Prints one line of JSON.
"""

import argparse
import json
import sys
import time

import torch
from official_worker import provide_timm


def images_a_second(step, images, labels, steps: int) -> float:
  rounds = []
  for _ in range(4):  # the first warms up
    start = time.perf_counter()
    for _ in range(steps):
      step(images, labels)
    if images.is_cuda:
      torch.cuda.synchronize()
    rounds.append(steps * len(images) / (time.perf_counter() - start))
  return sorted(rounds[1:])[1]


def make_step(model, device: str):
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

  def step(images, labels):
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype=torch.bfloat16):
      loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()

  return step


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--official', required=True)
  parser.add_argument('--model', required=True)
  parser.add_argument('--batch', type=int, required=True)
  parser.add_argument('--size', type=int, required=True)
  parser.add_argument('--steps', type=int, required=True)
  args = parser.parse_args()
  provide_timm()
  sys.path.insert(0, args.official)
  from models import rest, rest_v2

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.manual_seed(0)
  builder = getattr(rest_v2 if args.model.startswith('restv2') else rest, args.model)
  images = torch.randn(args.batch, 3, args.size, args.size, device=device)
  images = images.to(memory_format=torch.channels_last)
  labels = torch.randint(0, 1000, (args.batch,), device=device)
  chip = torch.cuda.get_device_name() if device == 'cuda' else 'CPU'
  found = {'versions': f'torch {torch.__version__}, {chip}'}
  for mode in ('eager', 'compiled'):
    model = builder().train().to(device, memory_format=torch.channels_last)
    try:
      called = torch.compile(model) if mode == 'compiled' else model
      found[mode] = images_a_second(make_step(called, device), images, labels, args.steps)
    except Exception as error:  # compiled code needs a toolchain; the eager figure stands
      print(f'{mode}: {type(error).__name__}: {error}', file=sys.stderr)
    del model
  print(json.dumps(found))


if __name__ == '__main__':
  main()
