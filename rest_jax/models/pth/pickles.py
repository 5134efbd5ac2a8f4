"""A closed interpreter of pickles: the instructions that make data, and no others.

Python's own unpickler imports what a pickle names and calls it. This one knows a closed list of
instructions, gives every name to `names.Names`, which imports nothing, and keeps to what the file
has: no length is believed before it is compared with the bytes that are left.

Source: the instructions' meaning is that of Python's `pickletools`, protocols 0 to 5.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from rest_jax.models.pth.faults import damaged, refused
from rest_jax.models.pth.names import Names, check_key

_MOST_STEPS = 5_000_000  # a checkpoint of 1,000 tensors has 50,000
_LONGEST_LINE = 1 << 16


class Source:
  """A part of a file, read forwards, never beyond its end.

  Args:
    file: the open file.
    start: first byte of the part.
    end: the byte after its last.
  """

  def __init__(self, file: BinaryIO, start: int, end: int):
    self._file, self.position, self._end = file, start, end
    file.seek(start)

  def read(self, count: int) -> bytes:
    """The next `count` bytes.

    Raises:
      PthError: there are fewer.
    """
    if count > self._end - self.position:
      raise damaged('its end is missing')
    content = self._file.read(count)
    if len(content) != count:
      raise damaged('its end is missing')
    self.position += count
    return content

  def line(self) -> bytes:
    """The bytes up to the next line feed, which is left out.

    Raises:
      PthError: there is none, or not within 65,536 bytes.
    """
    content = self._file.readline(min(_LONGEST_LINE, self._end - self.position))
    if not content.endswith(b'\n'):
      raise damaged('a line without end')
    self.position += len(content)
    return content[:-1]

  def skip(self, count: int) -> int:
    """Passes over bytes; returns where they began.

    Raises:
      PthError: there are fewer.
    """
    if not 0 <= count <= self._end - self.position:
      raise damaged('its end is missing')
    start = self.position
    self.position += count
    self._file.seek(self.position)
    return start

  def number(self, form: str) -> Any:
    """The next number, in `struct`'s form."""
    return struct.unpack(form, self.read(struct.calcsize(form)))[0]


def load(source: Source, names: Names, persistent: Callable[[Any], Any]) -> Any:
  """Goes through one pickle.

  Args:
    source: at its first byte; afterwards behind its last.
    names: what its names may do.
    persistent: gives what an identifier of the file stands for, a storage.

  Returns:
    The data; dicts, lists, tuples, sets, strings, bytes, numbers, and what `names` makes.

  Raises:
    PthError: an instruction or a name that is not on the list, or bytes that are no pickle.
    ArithmeticError, LookupError, TypeError, ValueError, AttributeError: likewise, no pickle.
  """
  machine = _Machine(source, names, persistent)
  for _ in range(_MOST_STEPS):
    code = source.read(1)
    if code == b'.':
      return machine.result()
    step = _STEPS.get(code)
    if step is None:
      raise refused(f'has the pickle instruction {_title(code)}')
    step(machine)
  raise damaged(f'a pickle of more than {_MOST_STEPS} instructions')


def _title(code: bytes) -> str:
  names = {op.code: op.name for op in pickletools.opcodes}
  return names.get(code.decode('latin-1'), f'0x{code.hex()}')


class _Machine:
  """The stack, the marks in it, and the values that a pickle has given a number."""

  def __init__(self, source: Source, names: Names, persistent: Callable[[Any], Any]):
    self.source, self.names, self.persistent = source, names, persistent
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self) -> Any:
    self.top()
    return self.stack.pop()

  def top(self) -> Any:
    if len(self.stack) <= (self.marks[-1] if self.marks else 0):
      raise damaged('a pickle that takes more than it has')
    return self.stack[-1]

  def pop_mark(self) -> list[Any]:
    """The values since the last mark, which goes too."""
    start = self.marks.pop()
    values = self.stack[start:]
    del self.stack[start:]
    return values

  def result(self) -> Any:
    if len(self.stack) != 1 or self.marks:
      raise damaged('a pickle that ends too early')
    return self.stack[0]

  def target(self, kind: type) -> Any:
    """The value on top, which has to be of a kind."""
    value = self.top()
    if not isinstance(value, kind):
      raise damaged(f'a {type(value).__name__} in the place of a {kind.__name__}')
    return value


_Step = Callable[[_Machine], Any]


def _constant(value: Any) -> _Step:
  return lambda m: m.push(value)


def _number(form: str) -> _Step:
  return lambda m: m.push(m.source.number(form))


def _long(form: str) -> _Step:
  return lambda m: m.push(
    int.from_bytes(m.source.read(m.source.number(form)), 'little', signed=True)
  )


def _text(form: str) -> _Step:
  return lambda m: m.push(str(m.source.read(m.source.number(form)), 'utf-8', 'surrogatepass'))


def _bytes(form: str, make: Callable[[bytes], Any]) -> _Step:
  return lambda m: m.push(make(m.source.read(m.source.number(form))))


def _latin(content: bytes) -> str:
  """A string of Python 2, whose bytes may be any."""
  return str(content, 'latin-1')


def _fresh(make: Callable[[], Any]) -> _Step:
  return lambda m: m.push(make())


def _of_marked(make: Callable[[list], Any]) -> _Step:
  return lambda m: m.push(make(m.pop_mark()))


def _int_line(m: _Machine) -> None:
  line = m.source.line()
  m.push({b'00': False, b'01': True}[line] if line in (b'00', b'01') else int(line))


def _quoted_line(m: _Machine) -> None:
  line = m.source.line().strip()
  if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b'\'"' or b'\\' in line:
    raise damaged('a string in quotes that is none')
  m.push(_latin(line[1:-1]))


def _tuple(length: int) -> _Step:
  def step(m: _Machine) -> None:
    values = [m.pop() for _ in range(length)]
    m.push(tuple(reversed(values)))

  return step


def _pairs(values: list) -> dict:
  if len(values) % 2:
    raise damaged('a key without value')
  return {check_key(k): v for k, v in zip(values[::2], values[1::2], strict=True)}


def _set_item(m: _Machine) -> None:
  value, key = m.pop(), m.pop()
  m.target(dict)[check_key(key)] = value


def _set_items(m: _Machine) -> None:
  pairs = _pairs(m.pop_mark())
  m.target(dict).update(pairs)


def _append(m: _Machine) -> None:
  value = m.pop()
  m.target(list).append(value)


def _append_all(m: _Machine) -> None:
  values = m.pop_mark()
  m.target(list).extend(values)


def _add_all(m: _Machine) -> None:
  values = m.pop_mark()
  m.target(set).update(map(check_key, values))


def _get(read: Callable[[_Machine], int]) -> _Step:
  return lambda m: m.push(m.memo[read(m)])


def _put(read: Callable[[_Machine], int]) -> _Step:
  def step(m: _Machine) -> None:
    m.memo[read(m)] = m.top()

  return step


def _name_lines(m: _Machine) -> None:
  module, name = (str(m.source.line(), 'utf-8') for _ in range(2))
  m.push(m.names.find(module, name))


def _name_of_stack(m: _Machine) -> None:
  name, module = m.pop(), m.pop()
  if not isinstance(name, str) or not isinstance(module, str):
    raise damaged('a name that is no text')
  m.push(m.names.find(module, name))


def _call(m: _Machine) -> None:
  args, name = m.pop(), m.pop()
  m.push(m.names.call(name, args))


def _build(m: _Machine) -> None:
  state = m.pop()
  m.names.build(m.top(), state)


def _persistent(m: _Machine) -> None:
  m.push(m.persistent(m.pop()))


def _double(m: _Machine) -> None:
  m.push(m.top())


def _drop(m: _Machine) -> None:
  # Python pops a mark where one is on top.
  if m.marks and m.marks[-1] == len(m.stack):
    m.marks.pop()
  else:
    m.pop()


def _protocol(m: _Machine) -> None:
  if m.source.number('<B') > 5:
    raise damaged('a pickle of an unknown protocol')


_BYTE, _WORD, _LONG_WORD = '<B', '<I', '<Q'
_STEPS: dict[bytes, _Step] = {
  b'\x80': _protocol,
  b'\x95': lambda m: m.source.number(_LONG_WORD),  # a frame's length says nothing here
  b'(': lambda m: m.marks.append(len(m.stack)),
  b'0': _drop,
  b'1': lambda m: m.pop_mark(),
  b'2': _double,
  b'N': _constant(None),
  b'\x88': _constant(True),
  b'\x89': _constant(False),
  b'I': _int_line,
  b'J': _number('<i'),
  b'K': _number(_BYTE),
  b'M': _number('<H'),
  b'L': lambda m: m.push(int(m.source.line().removesuffix(b'L'))),
  b'\x8a': _long(_BYTE),
  b'\x8b': _long(_WORD),
  b'F': lambda m: m.push(float(m.source.line())),
  b'G': _number('>d'),
  b'S': _quoted_line,
  b'T': _bytes(_WORD, _latin),
  b'U': _bytes(_BYTE, _latin),
  b'V': lambda m: m.push(str(m.source.line(), 'raw-unicode-escape')),
  b'\x8c': _text(_BYTE),
  b'X': _text(_WORD),
  b'\x8d': _text(_LONG_WORD),
  b'C': _bytes(_BYTE, bytes),
  b'B': _bytes(_WORD, bytes),
  b'\x8e': _bytes(_LONG_WORD, bytes),
  b'\x96': _bytes(_LONG_WORD, bytearray),
  b']': _fresh(list),
  b'a': _append,
  b'e': _append_all,
  b'l': _of_marked(list),
  b')': _constant(()),
  b't': _of_marked(tuple),
  b'\x85': _tuple(1),
  b'\x86': _tuple(2),
  b'\x87': _tuple(3),
  b'}': _fresh(dict),
  b'd': _of_marked(_pairs),
  b's': _set_item,
  b'u': _set_items,
  b'\x8f': _fresh(set),
  b'\x90': _add_all,
  b'\x91': _of_marked(lambda values: frozenset(map(check_key, values))),
  b'g': _get(lambda m: int(m.source.line())),
  b'h': _get(lambda m: m.source.number(_BYTE)),
  b'j': _get(lambda m: m.source.number(_WORD)),
  b'p': _put(lambda m: int(m.source.line())),
  b'q': _put(lambda m: m.source.number(_BYTE)),
  b'r': _put(lambda m: m.source.number(_WORD)),
  b'\x94': _put(lambda m: len(m.memo)),
  b'c': _name_lines,
  b'\x93': _name_of_stack,
  b'R': _call,
  b'\x81': _call,
  b'b': _build,
  b'Q': _persistent,
}
