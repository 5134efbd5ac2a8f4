"""Runs the authors' AutoAttack in PyTorch on tasks from stdin, one JSON line each, and answers so.

Started by `benchmarks/autoattack.py`; needs nothing of rest_jax, so any Python with torch will do.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch

NAMES = {'apgd_ce': 'apgd-ce', 'apgd_t': 'apgd-t', 'fab_t': 'fab-t', 'square': 'square'}
NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}


class ResNet20(torch.nn.Module):
  """As `autoattack_models.resnet20`, from the same weights."""

  def __init__(self, weights: dict[str, torch.Tensor]):
    super().__init__()
    self.p = weights

  def forward(self, x):
    mean = torch.tensor([0.485, 0.456, 0.406], device=x.device)
    std = torch.tensor([0.229, 0.224, 0.225], device=x.device)
    x = (x - mean[:, None, None]) / std[:, None, None]
    relu = torch.nn.functional.relu
    x = relu(self.conv_norm(x, 'conv1', 'bn1'))
    for name in (f'layer{stage}.{block}.' for stage in (1, 2, 3) for block in (0, 1, 2)):
      stride = 2 if name in ('layer2.0.', 'layer3.0.') else 1
      y = relu(self.conv_norm(x, name + 'conv1', name + 'bn1', stride))
      if stride == 2:
        more = x.shape[1] // 2
        x = torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
      x = relu(x + self.conv_norm(y, name + 'conv2', name + 'bn2'))
    return x.mean((2, 3)) @ self.p['linear.weight'].T + self.p['linear.bias']

  def conv_norm(self, x, conv: str, norm: str, stride: int = 1):
    p, functional = self.p, torch.nn.functional
    x = functional.conv2d(x, p[conv + '.weight'], stride=stride, padding=1)
    names = [f'{norm}.{part}' for part in ('running_mean', 'running_var', 'weight', 'bias')]
    return functional.batch_norm(x, *(p[name] for name in names), training=False)


def network(path: str) -> torch.nn.Module:
  """The network of `autoattack_models.py` that weights belong to."""
  with np.load(path) as file:
    weights = {name: torch.tensor(file[name]) for name in file.files}
  if 'layer1.0.conv1.weight' in weights:
    return ResNet20(weights).eval()
  nn = torch.nn
  layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
  layers += [nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10)]
  model = nn.Sequential(*layers)
  for layer, name in ((model[0], 'conv1'), (model[2], 'conv2')):
    layer.weight.data = weights[name].permute(3, 2, 0, 1).contiguous()
    layer.bias.data = weights[name + '_bias']
  # From maps flattened as H, W, C to maps flattened as C, H, W.
  dense = weights['dense1'].reshape(8, 8, 32, 64).permute(3, 2, 0, 1)
  model[5].weight.data = dense.reshape(64, 2048).contiguous()
  model[7].weight.data = weights['dense2'].T.contiguous()
  model[5].bias.data, model[7].bias.data = weights['dense1_bias'], weights['dense2_bias']
  return model.eval()


def run(task: dict, images: torch.Tensor, labels: torch.Tensor) -> dict:
  """Robust accuracy under the task's attacks, and the seconds they took."""
  from autoattack import AutoAttack

  model = network(task['weights'])
  start = time.perf_counter()
  attack = AutoAttack(
    model,
    norm=NORMS[task['norm']],
    eps=task['eps'],
    seed=task['seed'],
    version='standard',
    device='cpu',
    verbose=False,
  )
  attack.attacks_to_run = [NAMES[name] for name in task['attacks']]
  adv = attack.run_standard_evaluation(images, labels, bs=250)
  seconds = time.perf_counter() - start
  with torch.no_grad():
    right = [(model(x).argmax(1) == labels).float().mean().item() for x in (images, adv)]
  return {'clean': right[0], 'robust': right[1], 'seconds': seconds}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--official', required=True, help='checkout of github.com/fra31/auto-attack')
  parser.add_argument('--images', required=True, help='.npz of images (N, H, W, C) and labels')
  parser.add_argument('--threads', type=int, default=2)
  args = parser.parse_args()
  sys.path.insert(0, args.official)
  torch.set_num_threads(args.threads)
  with np.load(args.images) as file:
    images = torch.tensor(file['images']).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(file['labels']).long()
  print(json.dumps({'version': f'torch {torch.__version__}'}), flush=True)
  for line in sys.stdin:
    print(json.dumps(run(json.loads(line), images, labels)), flush=True)


if __name__ == '__main__':
  main()
