"""Exports models to StableHLO and ONNX and prints how far their outputs are from the models' own.

  python benchmarks/export.py                    # the eight ResTs, ResNet-50, EfficientNet-Lite0
  python benchmarks/export.py --model rest_lite --size 224

Needs the extra `onnx`. Weights are random (those of efficientnet_lite0 where they are installed);
the differences are shares of the largest logit, on three images of noise.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from jax import export as jax_export

from rest_jax import Classifier, create_model, list_models
from rest_jax.export.onnx import difference

NAMES = [*list_models('rest_*'), *list_models('restv2_*'), 'resnet50', 'efficientnet_lite0']


def opened(name, size):
  """A classifier of that size."""
  if name == 'efficientnet_lite0':
    return Classifier.load(name)
  module = create_model(name)
  variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  return Classifier.create(name, variables, num_classes=1000, input_size=size)


def of_stablehlo(path, classifier, shape):
  """Largest difference of the program, as a share."""
  images = np.random.default_rng(0).uniform(size=(3, *shape)).astype(np.float32)
  found = jax_export.deserialize(bytearray(path.read_bytes())).call(images)
  wanted = np.asarray(classifier(images))
  return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())


def row(name, size, folder):
  """One line of the table."""
  classifier, shape, began = opened(name, size), (size, size, 3), time.monotonic()
  paths = [classifier.export(folder / f'm{e}', image_shape=shape) for e in ('.stablehlo', '.onnx')]
  seconds = time.monotonic() - began
  session = onnxruntime.InferenceSession(str(paths[1]), providers=['CPUExecutionProvider'])
  worst = of_stablehlo(paths[0], classifier, shape), difference(classifier, session, shape)
  megabytes = [path.stat().st_size / 1e6 for path in paths]
  cells = [f'{megabytes[0]:.1f}', f'{worst[0]:.1e}', f'{megabytes[1]:.1f}', f'{worst[1]:.1e}']
  return f'| {name} | {" | ".join(cells)} | {seconds:.0f} |'


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', nargs='+', default=NAMES)
  parser.add_argument('--size', type=int, default=64, help='side of the images')
  args = parser.parse_args()
  print('| model | StableHLO, MB | difference | ONNX, MB | difference | both written, s |')
  print('|---|---|---|---|---|---|')
  with tempfile.TemporaryDirectory() as folder:
    for name in args.model:
      print(row(name, args.size, Path(folder)), flush=True)


if __name__ == '__main__':
  main()
