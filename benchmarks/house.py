"""The shape of the package, counted: files, lines, imports, circles, arrows between its rooms.

  python benchmarks/house.py                    of this checkout, as a Markdown table
  python benchmarks/house.py PATH ... --json    of other checkouts beside it, or as JSON

Lines of code are lines that hold a token which is neither a comment nor part of a docstring. An
arrow is a pair of modules of which the first names the second in an import, wherever it stands; a
lazy `__getattr__` table is none. What `if TYPE_CHECKING` imports counts as an arrow, since a reader
follows it all the same, and not towards circles, since nothing runs there.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PACKAGE = 'rest_jax'
# Evaluating, recording, resuming, tabulating, drawing and reporting: files of these names in the
# four rooms that do it, whatever has come down into `evaluation`, and what both once stood in.
REPORTING_ROOMS = ('attacks', 'explain', 'defend', 'train')
REPORTING_WORDS = (
  *('animate', 'bootstrap', 'cases', 'conclusion', 'curve', 'document', 'environment', 'evaluat'),
  *('examples', 'figures', 'files', 'findings', 'fingerprint', 'intervals', 'judge', 'measuring'),
  *('noise_study', 'picture', 'progress', 'record', 'report', 'result_images', 'results', 'rows'),
  *('spectra', 'strip', 'study', 'summary', 'transfer', 'validation'),
)


class House:
  """The modules of a checkout and the imports between them."""

  def __init__(self, root: Path):
    """Reads every module of the package under `root`, the folder that holds it."""
    self.files = sorted((root / PACKAGE).rglob('*.py'))
    self.paths = {self._name(root, path): path for path in self.files}
    self.trees = {name: ast.parse(path.read_text('utf-8')) for name, path in self.paths.items()}
    self.imports = {name: set(self._imported(name, False)) for name in self.trees}
    self.at_run_time = {name: set(self._imported(name, True)) for name in self.trees}

  @staticmethod
  def _name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)

  def _imported(self, name: str, run_time: bool) -> Iterator[str]:
    """Modules of the package that a module names in imports."""
    for node in _imports(self.trees[name], run_time):
      if isinstance(node, ast.Import):
        targets = [alias.name for alias in node.names]
      else:
        base = self._base(name, node)
        targets = [f'{base}.{alias.name}' for alias in node.names]
        targets = [target if target in self.paths else base for target in targets]
      yield from (target for target in targets if target in self.paths and target != name)

  def _base(self, name: str, node: ast.ImportFrom) -> str:
    if not node.level:
      return node.module or ''
    is_package = self.paths[name].name == '__init__.py'
    parts = name.split('.')[: None if is_package and node.level == 1 else -node.level + is_package]
    return '.'.join([*parts, *([node.module] if node.module else [])])

  def room(self, name: str) -> str:
    """The folder under the package that a module lies in; '' for the top."""
    parts = name.split('.')
    inside = len(parts) > 2 or self.paths[name].name == '__init__.py'
    return parts[1] if len(parts) > 1 and inside else ''

  def circles(self) -> list[list[str]]:
    """Groups of modules that import one another, directly or through others."""
    return [sorted(group) for group in _components(self.at_run_time) if len(group) > 1]

  def facts(self) -> dict[str, Any]:
    """All counts, in the order of a table."""
    sources = {name: path.read_text('utf-8') for name, path in self.paths.items()}
    code = {name: _code_lines(source, self.trees[name]) for name, source in sources.items()}
    importers = Counter(target for targets in self.imports.values() for target in targets)
    between = Counter(
      (self.room(name), self.room(target)) for name, ts in self.imports.items() for target in ts
    )
    inside = {room: n for (room, other), n in between.items() if room == other and room}
    return {
      'files': len(self.files),
      'lines': sum(source.count('\n') for source in sources.values()),
      'code lines': sum(code.values()),
      'import lines': sum(_import_lines(tree) for tree in self.trees.values()),
      'files under 80 lines': sum(source.count('\n') < 80 for source in sources.values()),
      'files over 500 lines': sum(source.count('\n') > 500 for source in sources.values()),
      'modules with one importer': sum(n == 1 for n in importers.values()),
      'circles': len(self.circles()),
      'pairs of rooms with an arrow': sum(bool(a and b and a != b) for a, b in between),
      'arrows between rooms': sum(n for (a, b), n in between.items() if a and b and a != b),
      **{f'arrows inside {room}': n for room, n in sorted(inside.items()) if n > 9},
      'code lines of evaluation and reporting': sum(
        lines for name, lines in code.items() if self._reports(name)
      ),
    }

  def _reports(self, name: str) -> bool:
    room = self.room(name)
    if room == 'evaluation' or name == f'{PACKAGE}.files':
      return True
    last = name.rpartition('.')[2]
    return room in REPORTING_ROOMS and any(word in last for word in REPORTING_WORDS)


def _imports(tree: ast.AST, run_time: bool) -> Iterator[ast.Import | ast.ImportFrom]:
  """Import statements; those for type checkers alone are left out of `run_time`."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      yield node
    elif not (run_time and isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test)):
      yield from _imports(node, run_time)


def _import_lines(tree: ast.AST) -> int:
  return sum((node.end_lineno or 0) - node.lineno + 1 for node in _imports(tree, False))


def _code_lines(source: str, tree: ast.AST) -> int:
  """Lines with code on them."""
  skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
  lines: set[int] = set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type not in skipped | {tokenize.ENDMARKER}:
      lines.update(range(token.start[0], token.end[0] + 1))
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
      text = node.body[0]
      lines.difference_update(range(text.lineno, (text.end_lineno or 0) + 1))
  return len(lines)


def _components(graph: dict[str, set[str]]) -> Iterable[set[str]]:
  """Strongly connected components: the sets of mutually reachable nodes."""
  reach = {name: _reachable(graph, name) for name in graph}
  left = set(graph)
  while left:
    name = left.pop()
    group = {name} | {other for other in reach[name] if name in reach[other]}
    left -= group
    yield group


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
  found: set[str] = set()
  pending = [start]
  while pending:
    for target in graph[pending.pop()] - found:
      found.add(target)
      pending.append(target)
  return found


def main() -> None:
  """Prints the facts of one or several checkouts side by side."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  here = Path(__file__).resolve().parent.parent
  parser.add_argument('checkouts', nargs='*', type=Path, default=[here])
  parser.add_argument('--json', action='store_true')
  args = parser.parse_args()
  houses = {str(path): House(path) for path in args.checkouts}
  facts = {path: house.facts() for path, house in houses.items()}
  if args.json:
    print(json.dumps(facts, indent=2))
    return
  print('| |', ' | '.join(facts), '|')
  print('|---|' + '---:|' * len(facts))
  keys = dict.fromkeys(key for found in facts.values() for key in found)
  for key in keys:
    print(f'| {key} |', ' | '.join(f'{found.get(key, 0):,}' for found in facts.values()), '|')
  for path, house in houses.items():
    for circle in house.circles():
      print(f'\n{path}: a circle of', ', '.join(circle))


if __name__ == '__main__':
  main()
