"""The rules of the house: who may import whom, names that mean one thing, conventions of the API.

CONTRIBUTING.md says what they are for. The counts that go with them are in `benchmarks/house.py`.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'benchmarks'))
from house import House  # noqa: E402

HOUSE = House(ROOT)

# What every room may use: modules at the top that know of no room.
GROUND = {
  *(
    'callables',
    'docstrings',
    'errors',
    'files',
    'foreign_layers',
    'hidden_modules',
    'hub',
    'inputs',
    'layers',
    'paths',
  ),
  *('profiles', 'program_cache', 'programs', 'recipes', 'rgb', 'text'),
}
# Rooms from the ground up, with the rooms that each may import.
ROOMS = {
  'ops': set(),
  'data': set(),
  'metrics': {'data'},
  'export': {'ops'},
  'models': {'ops', 'data', 'export'},
  'evaluation': set(),
  'attacks': {'ops', 'evaluation'},
  'explain': {'ops', 'evaluation'},
  'defend': {'ops', 'data', 'models', 'evaluation', 'attacks'},
  'train': {'ops', 'data', 'metrics', 'models', 'evaluation', 'attacks', 'explain', 'configs'},
}
# What stands behind a command: in explain it alone knows models and data.
COMMANDS = {
  'data': {'digit_scenes'},
  'models': {'convert', 'predict_command'},
  'train': {'validation_command'},
  'explain': {'command', 'run', 'evaluate', 'choices', 'study', 'findings'},
}
ABOVE = {'opening', 'command_line'}  # for commands: models and data from flags
FRONTS = (
  *('rest_jax', 'rest_jax.attacks', 'rest_jax.explain', 'rest_jax.explain.metrics'),
  *('rest_jax.defend', 'rest_jax.defend.denoise', 'rest_jax.train', 'rest_jax.data'),
  *('rest_jax.models', 'rest_jax.models.pth', 'rest_jax.ops', 'rest_jax.metrics'),
  *('rest_jax.evaluation', 'rest_jax.export'),
)


def _top(name: str) -> str:
  return name.split('.')[1] if '.' in name else ''


def _forbidden(name: str) -> list[str]:
  """What a module imports though its room may not."""
  room, last = HOUSE.room(name), name.rpartition('.')[2]
  if room not in ROOMS:
    return []
  allowed = ROOMS[room] | {room}
  grounds = set(GROUND)
  if last in COMMANDS.get(room, ()):
    allowed |= {'data', 'models', 'commands'}
  if room in ('defend', 'train') or last in COMMANDS.get(room, ()):
    grounds |= ABOVE
  return [
    target
    for target in HOUSE.at_run_time[name]
    if (HOUSE.room(target) or _top(target)) not in allowed | grounds and target != 'rest_jax'
  ]


@pytest.mark.parametrize('room', ROOMS)
def test_a_room_imports_what_is_below_it(room):
  wrong = {n: found for n in HOUSE.paths if HOUSE.room(n) == room if (found := _forbidden(n))}
  assert not wrong


def test_the_ground_knows_of_no_room():
  names = [f'rest_jax.{name}' for name in GROUND if f'rest_jax.{name}' in HOUSE.paths]
  assert len(names) == len(GROUND)
  assert not {
    (name, target)
    for name in names
    for target in HOUSE.at_run_time[name]
    if _top(target) not in GROUND
  }


def test_nothing_below_the_commands_imports_train():
  importers = {
    n for n, targets in HOUSE.imports.items() for t in targets if HOUSE.room(t) == 'train'
  } - {'rest_jax'}  # the front, which tells type checkers alone
  assert {HOUSE.room(name) for name in importers} <= {'train', 'commands', 'configs'}


def test_there_is_no_circle():
  assert HOUSE.circles() == []


@pytest.mark.parametrize('front', FRONTS)
def test_no_module_has_the_name_of_what_its_package_exports(front):
  package = importlib.import_module(front)
  modules = {
    found.name
    for found in pkgutil.iter_modules(package.__path__)
    if not inspect.ismodule(getattr(package, found.name, None))
  }
  assert not modules & set(getattr(package, '__all__', ()))


def test_a_file_is_one_concept_long():
  lines = {name: path.read_text('utf-8').count('\n') for name, path in HOUSE.paths.items()}
  most = 550  # five hundred, and room for a docstring
  assert {name: n for name, n in lines.items() if n > most} == {}


# How far the house has come; what falls is lowered here, and nothing rises.
MOST = {
  'circles': 0,
  'arrows inside attacks': 95,
  'arrows inside defend': 68,
  'files over 500 lines': 3,
  'code lines of evaluation and reporting': 5300,
}


@pytest.mark.parametrize('fact', MOST)
def test_the_house_grows_no_worse(fact):
  assert HOUSE.facts()[fact] <= MOST[fact]


def _functions(*fronts):
  seen = set()
  for front in fronts:
    package = importlib.import_module(front)
    for name in getattr(package, '__all__', ()):
      value = getattr(package, name)
      if inspect.isfunction(value) and value not in seen:
        seen.add(value)
        yield pytest.param(value, id=f'{front.removeprefix("rest_jax.")}.{name}')


def _parameters(function):
  return [p for p in inspect.signature(function).parameters.values() if p.name != 'self']


@pytest.mark.parametrize('function', [*_functions(*FRONTS)])
def test_a_docstring_names_every_argument(function):
  text = inspect.getdoc(function) or ''
  assert text, 'no docstring'
  parameters = _parameters(function)
  if len(parameters) > 2 or 'Args:' in text:
    assert 'Args:' in text
    missing = [
      p.name for p in parameters if not re.search(rf'^  \*{{0,2}}{p.name}\b.*:', text, re.M)
    ]
    assert not missing


@pytest.mark.parametrize('function', [*_functions(*FRONTS)])
def test_a_docstring_says_what_comes_back(function):
  text = inspect.getdoc(function) or ''
  returned = inspect.signature(function).return_annotation
  if len(_parameters(function)) > 2 and returned not in (None, 'None', inspect.Signature.empty):
    assert re.search(r'^Returns:|^Yields:', text, re.M)


# Arguments that several functions of a front share, in the order in which they stand.
SHARED = {
  'attacks': 'logits_fn images labels key norm eps steps loss output targets query_batch',
  'explain': 'model images maps method targets key layer grid output score query_batch',
  'explain.metrics': 'model images maps targets key output score query_batch',
}
POSITIONAL = {'logits_fn', 'source_fn', 'model', 'images', 'labels', 'maps', 'method', 'targets'}


def _shared_cases():
  for front, names in SHARED.items():
    for case in _functions(f'rest_jax.{front}'):
      yield pytest.param(case.values[0], names.split(), id=case.id)


@pytest.mark.parametrize('function, order', [*_shared_cases()])
def test_shared_arguments_stand_in_one_order(function, order):
  parameters = _parameters(function)
  names = [p.name for p in parameters]
  if names and names[0] in ('model', 'logits_fn') and 'images' in names:
    ours = [name for name in names if name in order]
    positional = [n for n in ours if n in POSITIONAL]
    keywords = [n for n in ours if n not in POSITIONAL]
    assert positional[:3] == sorted(positional[:3], key=order.index)
    assert keywords == sorted(keywords, key=order.index)
    by_keyword = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert set(keywords) <= by_keyword


DRAWING = ('rest_jax.attacks', 'rest_jax.explain', 'rest_jax.defend', 'rest_jax.ops')


@pytest.mark.parametrize('function', [*_functions(*DRAWING)])
def test_chance_comes_from_a_key(function):
  """Whoever draws takes a JAX key; only resampling of results on the host takes a seed."""
  names = {p.name for p in _parameters(function)}
  assert not names & {'rng', 'rngs', 'prng', 'random_state', 'random_seed'}
  assert 'seed' not in names or function.__name__ == 'bootstrap'


@pytest.mark.parametrize('front', FRONTS)
def test_editors_know_every_name_of_a_front(front):
  """What is loaded on first use is imported for type checkers, which take it for a module else."""
  names = getattr(importlib.import_module(front), '__all__', ())
  known = set()
  for node in ast.walk(HOUSE.trees[front]):
    if isinstance(node, ast.Import | ast.ImportFrom):
      known |= {alias.asname or alias.name for alias in node.names}
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
      known.add(node.name)
    elif isinstance(node, ast.Assign):
      known |= {target.id for target in node.targets if isinstance(target, ast.Name)}
  assert set(names) <= known
