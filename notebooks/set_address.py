"""Writes where the repository is cloned from into the notebooks, the README and the guides.

  python notebooks/set_address.py https://HOST/OWNER/NAME

That address stands in one place, `Repository` of [project.urls] in pyproject.toml. It is a
placeholder until whoever publishes the repository sets it; without an argument, what stands there
is written to the other files again.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = 'https://github.com/OWNER/rest_jax'
NOTEBOOKS = ('train_tpu', 'explain', 'defend', 'detection')
INSTALL = """\
import importlib.util
import os
import shutil
import subprocess
import sys

REPOSITORY = '{address}'


def install(address, place='rest_jax_clone'):
  if not os.path.isdir(place):
    subprocess.run(['git', 'clone', '--quiet', '--depth', '1', address, place], check=True)
  is_tpu = any(name.startswith(('TPU_', 'COLAB_TPU')) for name in os.environ)
  extra = '[tpu]' if is_tpu else '[cuda]' if shutil.which('nvidia-smi') else ''
  command = [sys.executable, '-m', 'pip', 'install', '--quiet', f'./{{place}}{{extra}}']
  subprocess.run(command, check=True)


if importlib.util.find_spec('rest_jax') is None:
  install(REPOSITORY)"""


def address():
  """The address in pyproject.toml."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
  return project['urls']['Repository']


def cell(repository):
  """The lines of the installing cell."""
  return INSTALL.format(address=repository).splitlines(keepends=True)


def main():
  """Sets the address where one is given, and writes it everywhere."""
  before, after = address(), (sys.argv[1:] or [address()])[0].removesuffix('/').removesuffix('.git')
  if not re.fullmatch(r'https://[\w.-]+/[\w.-]+/[\w.-]+', after):
    sys.exit(f'error: an address is https://HOST/OWNER/NAME, not {after}')
  for name in NOTEBOOKS:
    path = ROOT / 'notebooks' / f'{name}.ipynb'
    notebook = json.loads(path.read_text(encoding='utf-8'))
    (found,) = (c for c in notebook['cells'] if 'install' in c['metadata'].get('tags', []))
    found['source'] = cell(after)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'
    path.write_text(text, encoding='utf-8')
  for path in (ROOT / 'pyproject.toml', ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))):
    text = path.read_text(encoding='utf-8')
    owner, new = (a.split('/', 3)[3] for a in (before, after))
    text = text.replace(before, after).replace(f'/{owner}/', f'/{new}/')
    path.write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main()
