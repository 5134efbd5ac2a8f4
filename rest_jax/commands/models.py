"""The command `models`: how large they are, how accurate as published, what weights there are."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rest_jax.command_line import Parser
from rest_jax.errors import UserError, did_you_mean

# Parameters with 1,000 classes, or what a model has without; tests count them anew.
PARAMETERS = {
  'denoising_autoencoder': 47_436,
  'efficientnet_lite0': 4_652_008,
  'efficientnet_lite1': 5_416_680,
  'efficientnet_lite2': 6_092_072,
  'resnet101': 44_549_160,
  'resnet101_cifar': 44_541_480,
  'resnet110': 1_792_312,
  'resnet18': 11_689_512,
  'resnet18_cifar': 11_681_832,
  'resnet20': 334_072,
  'resnet32': 528_504,
  'resnet34': 21_797_672,
  'resnet34_cifar': 21_789_992,
  'resnet44': 722_936,
  'resnet50': 25_557_032,
  'resnet50_cifar': 25_549_352,
  'resnet56': 917_368,
  'rest_base': 30_327_052,
  'rest_large': 51_676_156,
  'rest_lite': 10_508_300,
  'rest_small': 13_679_708,
  'restv2_base': 55_965_208,
  'restv2_large': 86_532_520,
  'restv2_small': 41_205_976,
  'restv2_tiny': 30_434_776,
  'vgg16': 138_357_544,
  'vgg16_bn': 138_365_992,
  'vgg19': 143_667_240,
  'vgg19_bn': 143_678_248,
}
# Top-1 and top-5 on ImageNet-1k at 224 px as the papers give them (the Lites at 224, 240, 260).
PUBLISHED = {
  'rest_lite': '77.2 / 93.7',
  'rest_small': '79.6 / 94.9',
  'rest_base': '81.6 / 95.7',
  'rest_large': '83.6 / 96.3',
  'restv2_tiny': '82.3',
  'restv2_small': '83.2',
  'restv2_base': '83.7',
  'restv2_large': '84.2',
}

# Heads of detectors and segmenters: what they give, and their paper.
HEADS = {
  'retinanet': 'boxes (Lin et al. 2017)',
  'mask_rcnn': 'boxes and masks (He et al. 2017)',
  'semantic_fpn': 'a class a pixel (Kirillov et al. 2019)',
  'upernet': 'a class a pixel (Xiao et al. 2018)',
}


def main(words: Sequence[str], program: str = 'rest-jax models') -> int:
  """Prints the table; arguments, result and errors as in `train`."""
  parser = Parser(prog=program, description='Lists the models by name.')
  parser.add_argument('pattern', nargs='?', default='*', help="a shell pattern, such as 'restv2*'")
  pattern = parser.parse_args(list(words)).pattern
  from rest_jax.models import list_detectors, list_models, list_segmenters

  names = list_models(pattern)
  dense = {'detector': list_detectors(pattern), 'segmenter': list_segmenters(pattern)}
  weights = _weights()
  zoo = {name: held for held in weights.values() for name in held}
  if not names and not any(dense.values()) and pattern not in zoo:
    known = [*list_models(), *list_detectors(), *list_segmenters()]
    raise UserError(f'no model is called {pattern}; {did_you_mean(pattern, known, list_models())}')
  parts = [_table(names, weights)] if names or not any(dense.values()) else []
  parts += [_dense_list(kind, found, weights) for kind, found in dense.items() if found]
  print('\n\n'.join(parts))
  return 0


def _dense_list(kind: str, names: Sequence[str], weights: dict[str, dict[str, str]]) -> str:
  """Heads and the backbones that each of them is there for, then what has been trained."""
  heads: dict[str, list[str]] = {}
  for name in names:
    head = next(head for head in HEADS if name.startswith(f'{head}_'))
    heads.setdefault(head, []).append(name.removeprefix(f'{head}_'))
  lines = [f'{kind}s (create_{kind}, model.name of a config): HEAD_BACKBONE']
  for head, backbones in heads.items():
    lines += [f'  {head}: {HEADS[head]}']
    lines += textwrap.wrap(
      ', '.join(backbones), 96, initial_indent=' ' * 4, subsequent_indent=' ' * 4
    )
  held = [f'{zoo} ({name})' for name in names for zoo in weights.get(name, {})]
  lines += [f'  weights here (--model): {", ".join(held)}'] if held else []
  return '\n'.join(lines)


def _weights() -> dict[str, dict[str, str]]:
  """{model: {name of the zoo: whether its weights are here}}."""
  from rest_jax.models import model_dir

  found: dict[str, dict[str, str]] = {}
  for name in model_dir.zoo_names():
    place = Path(str(resources.files('rest_jax'))) / 'zoo' / name
    model = json.loads((place / model_dir.CONFIG).read_text(encoding='utf-8-sig'))['model']
    state = 'here'
    if model_dir.is_packaged(place):
      try:
        model_dir.packaged_checkpoint(place)
      except UserError:
        state = (place / model_dir.PACKAGE).read_text(encoding='utf-8').splitlines()[1]
    found.setdefault(model, {})[name] = state
  return found


def _table(names: Sequence[str], weights: dict[str, dict[str, str]]) -> str:
  rows = [('model', 'parameters', 'published top-1 / top-5', 'weights (--model, or model.init)')]
  for name in names:
    held = ', '.join(f'{z}: {state}' for z, state in weights.get(name, {}).items())
    official = 'a checkpoint of its authors (.pth)' if name in PUBLISHED else '-'
    count = f'{PARAMETERS[name]:,}' if name in PARAMETERS else '-'
    rows.append((name, count, PUBLISHED.get(name, '-'), held or official))
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  lines = [f'{a:{widths[0]}}  {b:>{widths[1]}}  {c:{widths[2]}}  {d}' for a, b, c, d in rows]
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
