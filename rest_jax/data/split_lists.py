"""Lists of a split, as Pascal VOC has them: a picture a line, its name without ending."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

# Whether a class is there, which lists of one class say behind the name: 'dog_train.txt'.
_MARK = re.compile(r'\s+(-1|0|1)$')


def read_names(text: str, is_there: Callable[[str], bool] | Collection[str]) -> list[str]:
  """The pictures that a list names; names may have spaces.

  Args:
    text: of the list.
    is_there: whether there is a picture of a name, or the names that there are.

  Returns:
    A name for each line that is not empty: the whole line where there is such a picture, else the
    line without the mark of a class at its end.
  """
  known = is_there if callable(is_there) else is_there.__contains__
  lines = (line.strip() for line in text.splitlines())
  return [line if known(line) else _MARK.sub('', line) for line in lines if line]
