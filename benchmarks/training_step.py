"""Speed of the ImageNet training step, alone and end to end, beside the authors' PyTorch.

  git clone https://github.com/wofmanaf/ResT
  python benchmarks/training_step.py --official ResT --official_python PYTHON_WITH_TORCH

For each model: the largest power of two of images that the device holds, the images a second of the
step alone (a batch that lies on the device) and end to end (generated 500x375 JPEGs read, decoded,
augmented and copied by the worker processes), and the share of the chip's peak, counted as three
forward passes a step. The authors' code runs with the same batch and automatic mixed precision,
eager and compiled. The table goes to benchmarks/results/training_step.md.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from rest_jax.evaluation.environment import command_line, describe_devices, environment
from rest_jax.train import parallel, pipeline
from rest_jax.train.command import load_config
from rest_jax.train.task import build_task

# Dense bfloat16 operations a second, from the makers' data sheets.
PEAKS = {
  'H200': 989e12, 'H100': 989e12, 'A100': 312e12, 'L4': 121e12, 'T4': 65e12, 'V100': 125e12,
  'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5e': 197e12, 'TPU v5p': 459e12, 'TPU v6': 918e12,
}  # fmt: skip
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass
class Run:
  """A compiled training step with its state and a batch on the device."""

  config: object
  mesh: object
  task: object
  state: object
  batch: dict

  def __call__(self) -> None:
    self.state, metrics = self.task.train_step(self.state, self.batch)  # type: ignore[attr-defined]
    jax.block_until_ready(metrics)


def prepare(name: str, batch: int, args) -> Run:
  """The step of `configs/<name>.py` at a batch; raises where the device cannot hold it."""
  config = load_config(ROOT / 'configs' / f'{name}.py')
  with config.unlocked():
    config.model.dtype = args.dtype
    config.data.image_size = args.size
    config.train.batch_size = batch
    config.data.eval_batch_size = batch
    config.train.accumulate = 1
  mesh = parallel.make_mesh()
  plan = pipeline.make_plan(config, 1_281_167, mesh)
  task = build_task(config, plan, mesh, tuple(map(str, range(1000))))
  rng = np.random.default_rng(0)
  rows = {
    'image': rng.integers(0, 256, (batch, args.size, args.size, 3), np.uint8),
    'label': rng.integers(0, 1000, batch).astype(np.int32),
  }
  run = Run(config, mesh, task, task.create(), parallel.to_global(rows, mesh))
  run()
  return run


def largest(name: str, args) -> tuple[int, Run]:
  """The largest power of two that fits, or the batch that was asked for."""
  if args.batch:
    return args.batch, prepare(name, args.batch, args)
  batch = args.start
  best = prepare(name, batch, args)
  while batch < args.most:
    try:
      best = prepare(name, 2 * batch, args)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      return batch, prepare(name, batch, args)
    batch *= 2
  return batch, best


def seconds_a_step(call, steps: int) -> float:
  """Median of three rounds."""
  call()
  rounds = []
  for _ in range(3):
    start = time.perf_counter()
    for _ in range(steps):
      call()
    rounds.append((time.perf_counter() - start) / steps)
  return float(np.median(rounds))


def end_to_end(run: Run, folder: Path, args) -> float:
  """Seconds a step with the input pipeline in front."""
  config = run.config
  with config.unlocked():  # type: ignore[attr-defined]
    config.data.name, config.data.workers = str(folder), args.workers  # type: ignore[attr-defined]
  batches = pipeline.train_batches(config, pipeline.load_sources(config).train)
  try:

    def call():
      run.batch = parallel.to_global(next(batches), run.mesh)
      run()

    return seconds_a_step(call, max(args.steps // 4, 2))
  finally:
    batches.close()


def make_photographs(folder: Path, count: int) -> None:
  """JPEGs of ImageNet's usual size with the spectrum of photographs."""
  rng = np.random.default_rng(0)
  for index in range(count):
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    noise = rng.normal(0, 8, (375, 500, 3))
    picture = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC)) + noise
    place = folder / ('train' if index < count - 2 else 'test') / f'class{index % 2}'
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(place / f'{index}.jpg', quality=90)


def forward_operations(run: Run, args) -> float:
  """Floating-point operations of one forward pass of one image, as XLA counts them."""
  from rest_jax import create_model
  from rest_jax.ops import use_form

  model = create_model(run.config.model.name)  # type: ignore[attr-defined]
  images = jax.ShapeDtypeStruct((1, args.size, args.size, 3), jnp.float32)
  with use_form('plain'):
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, images)
  return float(lowered.cost_analysis()['flops'])


def peer(name: str, batch: int, args) -> dict[str, float | str]:
  """Images a second of the authors' code, eager and compiled."""
  if not args.official:
    return {}
  worker = Path(__file__).with_name('official_training.py')
  command = [args.official_python, str(worker), '--official', args.official, '--model', name]
  command += ['--batch', str(batch), '--size', str(args.size), '--steps', str(args.steps)]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    print(f"the authors' {name} did not run; see the lines above", file=sys.stderr)
    return {}
  return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, folder: Path, args) -> str:
  """One row of the table."""
  batch, run = largest(name, args)
  alone = batch / seconds_a_step(run, args.steps)
  whole = batch / end_to_end(run, folder, args)
  operations = 3 * forward_operations(run, args) * alone
  kind = jax.devices()[0].device_kind
  peaks = [peak for chip, peak in PEAKS.items() if chip in kind]
  share = f'{operations / (peaks[0] * jax.device_count()):.1%}' if peaks else 'peak not known'
  del run  # its memory is the peer's
  jax.clear_caches()
  theirs = peer(name, batch, args)
  cells = [f'{theirs[mode]:.0f}' if mode in theirs else '-' for mode in ('eager', 'compiled')]
  print(f'{name}: peer {theirs.get("versions", "not run")}', file=sys.stderr)
  return f'| {name} | {batch} | {alone:.0f} | {whole:.0f} | {share} | {" | ".join(cells)} |'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--models', nargs='+', default=['rest_small', 'restv2_tiny'])
  parser.add_argument('--dtype', default='bfloat16', choices=['bfloat16', 'float32'])
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--batch', type=int, default=0, help='0 looks for the largest')
  parser.add_argument('--start', type=int, default=64, help='batch that the search starts from')
  parser.add_argument('--most', type=int, default=4096, help='batch that the search ends at')
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--workers', type=int, default=8)
  parser.add_argument('--pictures', type=int, default=512)
  parser.add_argument('--official', help='checkout of github.com/wofmanaf/ResT')
  parser.add_argument('--official_python', default=sys.executable, help='interpreter with torch')
  parser.add_argument('--output', type=Path, default=ROOT / 'benchmarks/results/training_step.md')
  args = parser.parse_args()
  lines = [
    f'# Training step, {args.dtype}, {args.size} px',
    '',
    f'`{command_line()}` on {describe_devices()}; {json.dumps(environment()["packages"])}',
    '',
    "| model | batch | img/s, step alone | img/s, end to end | of the peak | authors' eager, img/s "
    "| authors' compiled, img/s |",
    '|---|---|---|---|---|---|---|',
  ]
  with tempfile.TemporaryDirectory() as folder:
    make_photographs(Path(folder), args.pictures)
    for name in args.models:
      lines.append(measure(name, Path(folder), args))
      print(lines[-1], flush=True)
  args.output.parent.mkdir(parents=True, exist_ok=True)
  args.output.write_text('\n'.join([*lines, '']), encoding='utf-8')


if __name__ == '__main__':  # the pipeline's workers import this file again
  main()
