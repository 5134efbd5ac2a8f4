"""The main compiled functions cost no more than they did: operations, bytes, compilations.

What they cost is in cost_guard.json. `python -m benchmarks.costs --record` writes it anew, for a
change that is meant to cost more; the difference then stands in the commit.
"""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import costs  # noqa: E402

RECORDED = json.loads(costs.RECORDED.read_text('utf-8'))
# Versions of JAX from 0.10 to 0.12 trace some functions a little differently.
MARGIN = {'flops': 1.05, 'bytes': 1.10}
MORE_COMPILATIONS = 2
ADVICE = 'if that is meant, python -m benchmarks.costs --record'


@pytest.mark.parametrize('name', costs.PROGRAMS)
def test_operations_and_bytes_do_not_grow(name):
  found, recorded = costs.cost(name), RECORDED['costs'][name]
  for what, margin in MARGIN.items():
    assert found[what] <= recorded[what] * margin, f'{name} has more {what} than before; {ADVICE}'
    # What has become so much cheaper is to be recorded, else the guard would sleep.
    assert found[what] > 0.5 * recorded[what], f'{name} has far fewer {what}; {ADVICE}'


@pytest.mark.parametrize('name', costs.CALLS)
def test_compilations_do_not_grow(name):
  found, recorded = costs.compilations(name), RECORDED['compilations'][name]
  # Fewer where tests before have compiled some of them.
  assert found['first'] <= recorded['first'] + MORE_COMPILATIONS, ADVICE
  assert found['again'] <= recorded['again']


def test_everything_is_recorded():
  assert RECORDED['costs'].keys() == costs.PROGRAMS.keys()
  assert RECORDED['compilations'].keys() == costs.CALLS.keys()


def test_the_guard_sees_a_program_that_does_twice_the_work():
  import jax.numpy as jnp

  from benchmarks.ours.programs import Program, count

  x = jnp.ones((8, 8))
  once, twice = Program(lambda x: x @ x, x), Program(lambda x: (x @ x) @ (x + 1.0), x)
  found = [count(program.jitted.lower(x), 'flops') for program in (once, twice)]
  assert found[0] == 2 * 8**3 and found[1] >= 2 * found[0]
