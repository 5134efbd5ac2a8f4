"""The 1,000 classes of ImageNet-1k: synsets and words."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources

CLASSES = 1000


@functools.cache
def _rows() -> tuple[tuple[str, str], ...]:
  """(synset, words) of every class."""
  path = resources.files('rest_jax') / 'zoo' / 'imagenet' / 'labels.tsv'
  lines = path.read_text(encoding='utf-8').splitlines()
  return tuple((synset, words) for _, synset, words in (line.split('\t') for line in lines))


def synsets() -> tuple[str, ...]:
  """WordNet's identifiers in the order of the classes: 'n01440764' first."""
  return tuple(synset for synset, _ in _rows())


def words() -> tuple[str, ...]:
  """The classes in words, in order: 'tench' first, 'toilet tissue' last; no two are the same."""
  return tuple(name for _, name in _rows())


def in_words(class_names: Sequence[str]) -> tuple[str, ...]:
  """Class names with ImageNet's synsets in words, so that those of models and data sets compare.

  Args:
    class_names: of a model or a data set; TFDS's imagenet2012 and the folders of ImageNet, and of
      its offspring with fewer classes, are named by synsets.

  Returns:
    The words, in the same order, where all names are synsets of ImageNet-1k; else the names.
  """
  names, known = tuple(class_names), dict(_rows())
  return tuple(known[name] for name in names) if all(n in known for n in names) else names
