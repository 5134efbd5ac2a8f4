"""Which of a model's classes are those of a data set: one rule for everything that judges.

- Both have names: they are matched by name, whatever the order; a data set that knows a part of the
  model's classes is judged on that part (ImageNet-A, -R).
- One of them has numbers, which is how a model without names calls them: any names of the same
  count match, number n from 0 the n-th of them. Folders sort 10 before 2; that changes nothing.
- Numbers in a list of labels are a model's classes of these names where its names are numbers, else
  its classes in order.
- All else is refused, with the way out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rest_jax.errors import UserError

_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class ClassMatch:
  """How logits of a model become logits of a data set's classes.

  Attributes:
    classes: the model's class for each class of the data set; None where they are the same ones.
    class_names: what the classes are called in reports, one a class of the data set.
    part: whether the model knows more classes, which are left out.
  """

  classes: tuple[int, ...] | None
  class_names: tuple[str, ...]
  part: bool = False


def match_classes(
  data_names: Sequence[str],
  model_names: Sequence[str],
  *,
  data: str,
  model: str,
  numbered: bool = False,
) -> ClassMatch:
  """Matches the classes of a data set with those of a model.

  Args:
    data_names: the name of each label.
    model_names: the name of each logit.
    data: what the user called the data set.
    model: what the user called the model.
    numbered: whether the data set knows its classes by number alone, so that there may be more.

  Returns:
    The match.

  Raises:
    UserError: they do not belong together.
  """
  theirs, known = tuple(data_names), tuple(model_names)
  if numbered and len(theirs) <= len(known):
    return _by_number(len(theirs), known, data, model)
  place = {name: index for index, name in enumerate(known)}
  if twice := [name for name in theirs if theirs != known and known.count(name) > 1]:
    raise UserError(
      f'{data} has a class {twice[0]!r}, and so are {known.count(twice[0])} classes of the model '
      f'{model} called; give each a name of its own in labels.txt of the model directory'
    )
  unknown = [name for name in theirs if name not in place]
  if not unknown and (len(theirs) == len(known) or not all(map(_is_number, theirs))):
    return _match(tuple(place[name] for name in theirs), theirs, len(known))
  if len(theirs) == len(known) and not numbered:
    if numbers := _numbers(theirs):
      return _match(numbers, tuple(known[number] for number in numbers), len(known))
    if numbers := _numbers(known):
      return _match(tuple(numbers.index(label) for label in range(len(theirs))), theirs, len(known))
  raise UserError(_refusal(theirs, known, unknown, data, model))


def by_names(
  labels: Sequence[int], model_names: Sequence[str], *, data: str, model: str
) -> list[int] | None:
  """Labels of a list of numbers as classes of these names, where a model's names leave numbers out:
  folders may be called 1 to 102.

  Args:
    labels: the numbers.
    model_names: the name of each logit.
    data: what the user called the data set.
    model: what the user called the model.

  Returns:
    The model's class of each; None where every number up to the largest is a class, or the names
    are none of numbers, which is for `match_classes`.

  Raises:
    UserError: a label that no class is called.
  """
  known = tuple(model_names)
  place = {int(name): index for index, name in enumerate(known) if _is_number(name)}
  largest = max(labels, default=-1)
  if len(place) < len(known) or all(number in place for number in range(largest + 1)):
    return None
  if (strange := sorted({*labels} - {*place})) and largest >= 0:
    raise UserError(
      f'{data} has the label {strange[0]}, and the classes of the model {model} are called '
      f'{_some(known)}; choose a model of this data set, or mend the labels'
    )
  return [place[label] for label in labels]


def _by_number(count: int, known: tuple[str, ...], data: str, model: str) -> ClassMatch:
  """The first classes of a model, or those of these names where its names are numbers: folders are
  sorted as text, so that class '10' may come third.
  """
  if not all(map(_is_number, known)):
    return ClassMatch(None, known)
  place = {int(name): index for index, name in enumerate(known)}
  if len(place) < len(known) or not all(number in place for number in range(count)):
    raise UserError(
      f'{data} has classes by number, 0 to {count - 1}, and the classes of the model {model} are '
      f'called {_some(known)}; give the labels as the names of the classes'
    )
  classes = tuple(place[number] for number in range(count))
  # The model may know more, which come behind: a number is a class, never its place.
  rest = tuple(index for index in range(len(known)) if index not in set(classes))
  order = (*classes, *rest)
  return _match(order, tuple(known[index] for index in order), len(known))


def _match(classes: tuple[int, ...], names: tuple[str, ...], count: int) -> ClassMatch:
  same = classes == tuple(range(count))
  return ClassMatch(None if same else classes, names, part=len(classes) < count)


def _numbers(names: Sequence[str]) -> tuple[int, ...]:
  """The names as numbers where they are all of 0 to K - 1, in any order; else none."""
  if not all(map(_is_number, names)):
    return ()
  numbers = tuple(map(int, names))
  return numbers if sorted(numbers) == list(range(len(numbers))) else ()


def _is_number(name: str) -> bool:
  return name.isascii() and name.isdigit()


def _refusal(
  theirs: Sequence[str], known: Sequence[str], unknown: Sequence[str], data: str, model: str
) -> str:
  have = (
    f'{data} has classes {_some(theirs)}, the model {model} {_some(known)}: the data has '
    f'{len(theirs)}, the model {len(known)} classes'
  )
  out = 'choose a model of this data set, or '
  if _numbers(known):
    return f'{have}, without names; {out}name them in labels.txt of the model directory, one a line'
  if all(map(_is_number, theirs)):
    return f'{have}; {out}name the folders after the classes'
  few = f"{_some(unknown)} {'is' if len(unknown) == 1 else 'are'} none of the model's"
  return f'{have}, and {few}; {out}rename the folders where only the words differ'


def _some(names: Sequence[str]) -> str:
  shown = ', '.join(names[:_SHOWN])
  return f'{shown} and {len(names) - _SHOWN} more' if len(names) > _SHOWN else shown
