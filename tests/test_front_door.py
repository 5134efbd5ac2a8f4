"""What `import rest_jax` offers, and what it must not cost."""

import subprocess
import sys

import pytest

import rest_jax


def test_every_name_is_there():
  for name in rest_jax.__all__:
    assert getattr(rest_jax, name) is not None
  assert set(rest_jax.__all__) <= set(dir(rest_jax))


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match='no attribute'):
    rest_jax.nonsense  # noqa: B018


def test_importing_it_imports_nothing_heavy():
  code = (
    'import sys, rest_jax; '
    'print([m for m in ("jax", "flax", "tensorflow", "torch", "tensorflow_datasets") '
    'if m in sys.modules])'
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'


def test_the_four_parts_import_nothing_slow():
  """Statistics, figures and clusters are imported where they are used."""
  code = (
    'import sys; from rest_jax import Classifier, attacks, defend, explain; '
    'print([m for m in ("scipy", "sklearn", "matplotlib", "tensorflow_datasets", "torch") '
    'if m in sys.modules])'
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'
