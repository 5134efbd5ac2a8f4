"""Speed of the input pipeline beside a torch DataLoader with timm's transforms, in one run.

  python benchmarks/input_pipeline.py --official_python PYTHON_WITH_TORCH_AND_TIMM [--size 500x375]

Both read the same generated JPEGs through the recipe of the ResT papers: random resized crop to
224, mirroring, RandAugment. The DataLoader goes on to normalised float tensors with random erasing,
as in the authors' training script, or stops at uint8, as with timm's prefetcher; ours stops at
uint8 and does the rest on the device. Scaled decoding (`data.scaled_decoding`) reads a JPEG at a
half, a quarter or an eighth, the scales that Pillow offers, where the crop keeps 224 pixels a side:
with images below 448 pixels it never does, and gives the same pixels. A side runs in processes of
its own, which are stopped while it is not its turn, so nobody reads ahead for free. The figure is
images a second of processor time, over all processes of a side, which holds on a busy machine too;
the ratio is the median of those of the rounds.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

HERE = Path(__file__).parent
SIDES = {
  'rest_jax': ['input_pipeline_ours.py'],
  'rest_jax, scaled decoding': ['input_pipeline_ours.py', '--scaled'],
  'rest_jax, three views an image': ['input_pipeline_ours.py', '--repeats', '3'],
  'torch DataLoader': ['input_pipeline_torch.py'],
  'torch DataLoader, uint8': ['input_pipeline_torch.py', '--uint8'],
}
RATIOS = [
  ('rest_jax', 'torch DataLoader'),
  ('rest_jax', 'torch DataLoader, uint8'),
  ('rest_jax, scaled decoding', 'torch DataLoader'),
  ('rest_jax, three views an image', 'torch DataLoader'),
]


def make_images(root: Path, count: int, size: tuple[int, int]) -> None:
  """Writes JPEGs of quality 90, parts of two photographs, into two class folders."""
  from sklearn.datasets import load_sample_images

  photographs = [Image.fromarray(image) for image in load_sample_images().images]
  rng = np.random.default_rng(0)
  for number in range(count):
    picture = photographs[number % 2]
    width, height = (side * rng.uniform(0.6, 1) for side in picture.size)
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    box = (left, top, left + width, top + height)
    part = picture.resize(size, Image.Resampling.BICUBIC, box=box)
    folder = root / 'train' / f'class{number % 2}'
    folder.mkdir(parents=True, exist_ok=True)
    part.save(folder / f'{number:05}.jpg', quality=90)


class Side:
  """One of the two, in a process of its own; stopped but for `run`."""

  def __init__(self, name: str, args, root: Path):
    script, *options = SIDES[name]
    ours = script.endswith('ours.py')
    options += ['--root', str(root), '--batch', str(args.batch), '--workers', str(args.workers)]
    command = [sys.executable if ours else args.official_python, str(HERE / script), *options]
    pipe = subprocess.PIPE
    self.process = psutil.Popen(command, stdin=pipe, stdout=pipe, text=True)
    self.version, self.start_seconds = self._read(), float(self._read())
    self.start_cpu = sum(_cpu(worker) for worker in self.workers())
    self._signal('suspend')

  def _read(self) -> str:
    for line in self.process.stdout:
      if line.startswith('@'):  # whatever else a library may print
        return line[1:].strip()
    sys.exit('a side ended; see the lines above')

  def _tree(self) -> list[psutil.Process]:
    return [self.process, *self.process.children(recursive=True)]

  def _signal(self, name: str) -> None:
    for process in self._tree():
      getattr(process, name)()

  def workers(self) -> list[psutil.Process]:
    """The processes that read; helpers of Python's multiprocessing are small."""
    return [p for p in self._tree()[1:] if p.memory_info().rss > 50 * 2**20]

  def run(self, batches: int) -> tuple[float, float]:
    """Reads some batches; returns (seconds, seconds of processor time of all its processes)."""
    self._signal('resume')
    cpu, start = sum(map(_cpu, self._tree())), time.perf_counter()
    self.process.stdin.write(f'{batches}\n')
    self.process.stdin.flush()
    self._read()
    seconds = time.perf_counter() - start
    cpu = sum(map(_cpu, self._tree())) - cpu
    self._signal('suspend')
    return seconds, cpu

  def memory(self) -> tuple[float, float]:
    """Returns the largest (RSS, PSS) of a worker in MB."""
    found = [worker.memory_full_info() for worker in self.workers()]
    return max(m.rss for m in found) / 1e6, max(m.pss for m in found) / 1e6

  def close(self) -> None:
    tree = self._tree()
    for process in tree:
      process.kill()
    psutil.wait_procs(tree)


def _cpu(process: psutil.Process) -> float:
  times = process.cpu_times()
  return times.user + times.system


def measure(args, root: Path) -> list[str]:
  """Lines of the report."""
  names = [n for n in SIDES if args.official_python or not n.startswith('torch')]
  sides: dict[str, Side] = {}
  with contextlib.ExitStack() as stack:
    for name in names:
      sides[name] = Side(name, args, root)
      stack.callback(sides[name].close)
    return report(args, sides)


def report(args, sides: dict[str, Side]) -> list[str]:
  """Lets the sides take turns and writes down what they took."""
  names = list(sides)
  rounds = {name: [] for name in names}
  for number in range(args.rounds + 1):
    for name in names:
      result = sides[name].run(args.batches)
      if number:  # the first warms up
        rounds[name].append(result)
  images = args.batch * args.batches
  lines = [
    '| side | img/s of one core | img/s | start to first batch, s (processor time of workers) | '
    'memory of a worker, MB: RSS, PSS |',
    '|---|---|---|---|---|',
  ]
  for name, side in sides.items():
    seconds, cpu = (statistics.median(column) for column in zip(*rounds[name], strict=True))
    rss, pss = side.memory()
    lines.append(
      f'| {name} | {images / cpu:.0f} | {images / seconds:.0f} | {side.start_seconds:.1f} '
      f'({side.start_cpu:.1f}) | {rss:.0f}, {pss:.0f} |'
    )
  lines += ['', '| ratio of img/s of one core | median | least | largest |', '|---|---|---|---|']
  for mine, theirs in RATIOS:
    if theirs in rounds:
      pairs = zip(rounds[mine], rounds[theirs], strict=True)
      ratios = sorted(other[1] / own[1] for own, other in pairs)
      lines.append(
        f'| {mine} / {theirs} | {statistics.median(ratios):.2f} | {ratios[0]:.2f} | '
        f'{ratios[-1]:.2f} |'
      )
  versions = sorted({side.version for side in sides.values()})
  return [*lines, '', f'Versions: {"; ".join(versions)}.']


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--official_python', help='interpreter with torch, torchvision and timm')
  parser.add_argument('--images', type=int, default=200)
  parser.add_argument('--size', default='500x375', help='of an image, WIDTHxHEIGHT')
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--batches', type=int, default=6, help='of a side in a round')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--workers', type=int, default=1, help='processes that read, on each side')
  parser.add_argument('--output', help='writes the report to this file too')
  args = parser.parse_args()
  width, _, height = args.size.partition('x')
  size = (int(width), int(height))
  with tempfile.TemporaryDirectory() as folder:
    make_images(Path(folder), args.images, size)
    load = os.getloadavg()[0]
    lines = measure(args, Path(folder))
  lines += [
    f'Machine: {os.cpu_count()} cores, load average {load:.1f} before and {os.getloadavg()[0]:.1f} '
    f'after. {args.images} images of {args.size}, {args.workers} worker(s), batches of '
    f'{args.batch}, {args.rounds} rounds of {args.batches} batches.'
  ]
  table = '\n'.join(lines)
  print(table)
  if args.output:
    title = '# The input pipeline beside a torch DataLoader with timm'
    options = (
      f'--size {args.size} --rounds {args.rounds} --batches {args.batches} --workers {args.workers}'
    )
    python = 'PYTHON_WITH_TORCH_AND_TIMM'
    command = f'`python benchmarks/input_pipeline.py --official_python {python} {options}`'
    about = (__doc__ or '').split('\n\n')[-1].strip()
    text = '\n\n'.join([title, about, f'Command: {command}', table]) + '\n'
    Path(args.output).write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main()
