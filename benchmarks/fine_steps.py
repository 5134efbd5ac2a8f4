"""Insertion and deletion in 112 steps, where they were measured on some of the images alone.

  python -m benchmarks.fine_steps benchmarks/results/photographs.jsonl.gz --method group_cam

28 steps are measured on all images, 112 on some, at four times the cost. What the two differ by is
small and much the same from image to image, so that a few say what the mean in 112 steps over all
images is (two-phase sampling, the difference estimator; Cochran 1977, Sampling Techniques, chapter
12): the mean in 28 steps over all plus the mean difference over those with both. The intervals are
95 % bootstrap intervals over the images, and hold the uncertainty of both means.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.explanations import (
  Rows,
  Values,
  cell,
  file_of,
  joined,
  less,
  mean_of,
  values_of,
)
from rest_jax.errors import UserError, run_script
from rest_jax.evaluation.document import markdown_table
from rest_jax.evaluation.intervals import Interval
from rest_jax.explain.figures import title_of
from rest_jax.explain.study import label, split_label
from rest_jax.explain.table import FINE, MEASURES


class Estimate(NamedTuple):
  """A measure in fine steps.

  Attributes:
    gap: the mean of fine less coarse steps, over the images with both.
    mean: of fine steps, over all images with coarse ones.
    count: images with both.
  """

  gap: Interval
  mean: Interval
  count: int


def main(words: Sequence[str] | None = None) -> int:
  """Prints the table; the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('results', nargs='+', type=Path, help='output folders, or files of records')
  parser.add_argument('--method', required=True, help='what is compared with each other one')
  args = parser.parse_args(words)
  _, rows = joined([file_of(path) for path in args.results])
  print(to_markdown(rows, args.method))
  return 0


def two_phase(coarse: Values, fine: Values) -> Estimate:
  """The mean in fine steps over all images, of values by image.

  Raises:
    UserError: fewer than two images have both.
  """
  gaps = less(fine, coarse)
  if len(gaps) < 2:
    raise UserError(f'{len(gaps)} images are measured in both steps; two or more tell a difference')
  gap, share = float(np.mean([*gaps.values()])), len(coarse) / len(gaps)
  # One value an image whose mean is the estimate, and whose spread is that of both its terms.
  values = [coarse[i] + gap + share * (gaps.get(i, gap) - gap) for i in sorted(coarse)]
  return Estimate(mean_of([*gaps.values()]), mean_of(values), len(gaps))


def to_markdown(rows: Rows, method: str) -> str:
  """A line a case that has fine steps: of insertion and deletion the gap, mean and difference.

  Raises:
    UserError: there are no records of the method, or none in fine steps.
  """
  cases = [case for case in rows if label(case, 'fine') in rows and not split_label(case)[1]]
  if method not in cases:
    raise UserError(f'no records of {method} in fine steps; there are {", ".join(cases) or "none"}')
  beside = ('112 less 28 steps', f'{title_of(method)} minus it')
  heads = [head for name in FINE for head in (MEASURES[name].title, *beside)]
  table = [[title_of(case), *_cells(rows, case, method)] for case in cases]
  return markdown_table(['method', *heads, 'images in both'], table)


def _cells(rows: Rows, case: str, method: str) -> Iterator[str]:
  count = 0
  for name in FINE:
    steps = (name.removesuffix('_fine'), name)
    ours, theirs = ([values_of(rows, of, n) for n in steps] for of in (method, case))
    found = two_phase(*theirs)
    yield '{:.3f} [{:.3f}, {:.3f}]'.format(*found.mean)
    yield '{:+.4f} [{:+.4f}, {:+.4f}]'.format(*found.gap)
    yield '–' if case == method else cell(name, two_phase(*map(less, ours, theirs)).mean)
    count = found.count
  yield str(count)


if __name__ == '__main__':
  run_script(main)
