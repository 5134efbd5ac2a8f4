"""Which classes of a model are those of a data set: one rule, as a table and a property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.data.class_match import match_classes
from rest_jax.errors import UserError

COLOURS = ('blue', 'green', 'red')


def match(theirs, known, **options):
  return match_classes(theirs, known, data='photos', model='net', **options)


@pytest.mark.parametrize(
  ('theirs', 'known', 'classes', 'names', 'part'),
  [
    (COLOURS, COLOURS, None, COLOURS, False),
    (('red', 'blue', 'green'), COLOURS, (2, 0, 1), ('red', 'blue', 'green'), False),
    (('red', 'blue'), COLOURS, (2, 0), ('red', 'blue'), True),
    (('red',), COLOURS, (2,), ('red',), True),
    (('0', '1', '2'), COLOURS, None, COLOURS, False),
    (COLOURS, ('0', '1', '2'), None, COLOURS, False),
    (('0', '1', '2'), ('0', '1', '2'), None, ('0', '1', '2'), False),
    (('2', '1', '0'), ('0', '1', '2'), (2, 1, 0), ('2', '1', '0'), False),
    (('02', '00', '01'), COLOURS, (2, 0, 1), ('red', 'blue', 'green'), False),
    (COLOURS, ('0', '2', '1'), (0, 2, 1), COLOURS, False),
  ],
)
def test_classes_that_belong_together(theirs, known, classes, names, part):
  found = match(theirs, known)
  assert (found.class_names, found.part) == (names, part)
  assert found.classes == classes


@pytest.mark.parametrize(
  ('theirs', 'known', 'words'),
  [
    (('lion', 'tiger', 'zebra'), COLOURS, ("lion, tiger, zebra are none of the model's", 'rename')),
    (('blue', 'lion'), COLOURS, ("lion is none of the model's", 'choose a model of this data set')),
    (('blue', 'green', 'red', 'pink'), COLOURS, ('the data has 4', "pink is none of the model's")),
    (('a', 'b'), ('0', '1', '2'), ('the model 3 classes, without names', 'labels.txt')),
    (('0', '1'), tuple('0123456789'), ('the data has 2', 'the model 10 classes, without names')),
    (('1', '7'), tuple('0123456789'), ('the data has 2', 'the model 10 classes')),
    (('1', '7'), COLOURS, ('the data has 2', 'name the folders')),
    (('0', '1', '2', '3'), COLOURS, ('the data has 4', 'choose a model of this data set')),
    (('Blue', 'green', 'red'), COLOURS, ("Blue is none of the model's",)),
  ],
)
def test_classes_that_do_not(theirs, known, words):
  with pytest.raises(UserError) as caught:
    match(theirs, known)
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)


SORTED = tuple(sorted(map(str, range(12))))  # '0', '1', '10', '11', '2', ...


@given(st.permutations(range(6)), st.integers(1, 6), st.booleans())
def test_a_number_of_a_list_is_the_class_of_that_name(order, count, padded):
  known = tuple(f'{number:02}' if padded else str(number) for number in order)
  found = match(tuple(map(str, range(count))), known, numbered=True)
  classes = found.classes or tuple(range(6))
  assert [int(known[place]) for place in classes[:count]] == list(range(count))
  assert sorted(classes) == list(range(6)) and not found.part
  assert found.class_names == tuple(known[place] for place in classes)


def test_numbered_folders_are_sorted_as_text():
  found = match(tuple(map(str, range(12))), SORTED, numbered=True)
  assert found.classes == (0, 1, *range(4, 12), 2, 3)
  assert found.class_names == tuple(map(str, range(12)))


@pytest.mark.parametrize('known', [('1', '2', '3'), ('0', '00', '1'), ('0', '2', '4')])
def test_numbers_that_are_no_names_of_numbered_classes_are_refused(known):
  with pytest.raises(UserError, match='give the labels as the names of the classes'):
    match(('0', '1'), known, numbered=True)


def test_numbers_of_a_list_speak_of_the_models_classes():
  assert match(('0', '1'), COLOURS, numbered=True).class_names == COLOURS
  with pytest.raises(UserError, match='the data has 4, the model 3'):
    match(tuple('0123'), COLOURS, numbered=True)


@given(st.integers(2, 30))
def test_folders_that_are_numbers_keep_their_numbers(count):
  """Folders are sorted as text, 10 before 2; class 10 is still the model's class 10."""
  folders = tuple(sorted(map(str, range(count))))
  names = tuple(f'class {number}' for number in range(count))
  for theirs, known in ((folders, names), (folders, tuple(map(str, range(count))))):
    found = match(theirs, known)
    classes = found.classes if found.classes is not None else range(count)
    assert [str(number) for number in classes] == list(folders)
  back = match(names, folders).classes or range(count)
  assert [folders[place] for place in back] == [str(number) for number in range(count)]


@given(st.permutations(range(6)), st.integers(1, 6))
def test_a_part_in_any_order_is_matched_by_name(order, count):
  known = tuple('abcdef')
  theirs = tuple(known[index] for index in order[:count])
  found = match(theirs, known)
  classes = found.classes if found.classes is not None else range(6)
  assert tuple(known[index] for index in classes) == theirs == found.class_names
