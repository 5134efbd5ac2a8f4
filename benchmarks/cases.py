"""What is compared: cases of suites, and the registry of suites."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rest_jax.errors import UserError, did_you_mean

# Peers by the name that --peers knows them by: what is theirs, and a file that tells a checkout.
PEERS = {
  'rest': ('github.com/wofmanaf/ResT', 'models/rest.py'),
  'groupcam': ('github.com/wofmanaf/Group-CAM', 'cam/groupcam.py'),
  'autoattack': ('github.com/fra31/auto-attack', 'autoattack/autoattack.py'),
  'python': ('an interpreter with torch', ''),
}


@dataclasses.dataclass(frozen=True)
class Options:
  """What a suite may make its cases of.

  Attributes:
    quick: small shapes: everything runs, and its figures say little.
    device: 'cpu' or 'gpu'.
    output: folder of the run, for files that both sides read.
    data_dir: of TFDS, with cifar10 prepared; None: images of noise instead.
    models: the models that a suite of models takes, where the user says; else its own.
  """

  quick: bool = False
  device: str = 'cpu'
  output: Path = Path('work/benchmarks')
  data_dir: str | None = None
  models: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ours:
  """A side that this project is.

  Attributes:
    task: 'module.function' of `benchmarks.ours`.
    params: its arguments.
  """

  task: str
  params: Mapping[str, Any]
  who = 'ours'
  peer = None


@dataclasses.dataclass(frozen=True)
class Theirs:
  """A side that somebody else's code is.

  Attributes:
    task: 'module.function' of `benchmarks.theirs`.
    params: its arguments; where a checkout is needed, `checkout` is added.
    peer: the name in `PEERS` of what has to be there.
  """

  task: str
  params: Mapping[str, Any]
  peer: str = 'python'
  who = 'theirs'


@dataclasses.dataclass(frozen=True)
class Case:
  """One row of a table: two or more sides that do the same work.

  Attributes:
    about: what is done, by column.
    sides: the first is the one that the others are compared with.
    items: images, or whatever is counted, of a call.
    fresh: a process for each side, so that the peak of memory is its own.
    alone: one side after the other, each in a process that ends before the next begins: for work
      that fills the device. A batch of 0 is the one that the first side has chosen.
    once: the first call, in a fresh process, is the time: compilation counts.
    processor: ratios are of processor time of all processes of a side, which stand still while it
      is not their turn: for work that goes on between calls.
    repeats: rounds at most; None: those of the run.
    calls: in a turn, at least.
  """

  about: Mapping[str, Any]
  sides: Mapping[str, Ours | Theirs]
  items: int = 1
  fresh: bool = False
  alone: bool = False
  once: bool = False
  processor: bool = False
  repeats: int | None = None
  calls: int = 1

  @property
  def name(self) -> str:
    """The columns in a line."""
    return ', '.join(str(value) for value in self.about.values())


@dataclasses.dataclass(frozen=True)
class Suite:
  """Cases under a name.

  Attributes:
    name: of the registry.
    title: one line.
    about: what its figures mean, one paragraph; may be empty.
    cases: options to cases.
    conclude: records and the run's folder to blocks of the report that stand below the table.
  """

  name: str
  title: str
  about: str
  cases: Callable[[Options], list[Case]]
  conclude: Callable[[list[dict[str, Any]], Path], list[Any]] | None = None


_MODULES = ('models', 'attention', 'cams', 'attacks', 'denoisers', 'pipeline', 'dense', 'growth')
_REGISTERED: dict[str, Suite] = {}


def suite(
  name: str, conclude: Callable[[list[dict[str, Any]], Path], list[Any]] | None = None
) -> Callable[[Callable[[Options], list[Case]]], Callable[[Options], list[Case]]]:
  """Decorator: makes `cases(options) -> cases` a suite; its docstring is title and about."""

  def add(cases):
    if name in _REGISTERED:
      raise ValueError(f'two suites are called {name!r}')
    title, _, about = inspect.cleandoc(cases.__doc__).partition('\n')
    _REGISTERED[name] = Suite(name, title.rstrip('.'), ' '.join(about.split()), cases, conclude)
    return cases

  return add


class _Suites(Mapping[str, Suite]):
  """Name to suite, in the order of the report."""

  def _all(self) -> dict[str, Suite]:
    for module in _MODULES:
      importlib.import_module(f'benchmarks.suites.{module}')
    return _REGISTERED

  def __getitem__(self, name: str) -> Suite:
    return self._all()[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._all())

  def __len__(self) -> int:
    return len(self._all())


SUITES: Mapping[str, Suite] = _Suites()


def chosen(names: list[str] | None) -> list[Suite]:
  """The suites of that name, all by default.

  Raises:
    UserError: an unknown name.
  """
  for name in names or ():
    if name not in SUITES:
      raise UserError(f'there is no suite {name!r}; {did_you_mean(name, list(SUITES))}')
  return [SUITES[name] for name in SUITES if not names or name in names]
