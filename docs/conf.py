"""Sphinx: the guides of this folder (MyST) and the reference from the docstrings, in furo."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import rest_jax  # noqa: E402

project = 'rest_jax'
author = 'the rest_jax authors'
copyright = author  # the name is Sphinx's
version = release = rest_jax.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = 'rest_jax'
html_static_path = ['_static']
html_css_files = ['style.css']
html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ['colon_fence']
# A block of output is not of the language that its guide is written in.
highlight_language = 'none'
suppress_warnings = ['misc.highlighting_failure']

autodoc_default_options = {'members': True, 'member-order': 'groupwise'}
autodoc_typehints = 'none'  # the docstrings say shapes and ranges, which types do not
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
# What the extras bring, and what a site can be built without.
autodoc_mock_imports = ['jax2onnx', 'onnx', 'onnxruntime', 'huggingface_hub']

_CODE = re.compile(r'`([^`]+)`')
_MARKS = re.compile(r'(?<!\\)([*|_])')


def as_rst(app, what, name, obj, options, lines):
  """Our docstrings are plain text with `code`, which Sphinx writes ``so``; no star is markup."""
  text = '\n'.join(lines)
  parts, at = [], 0
  for match in _CODE.finditer(text):
    parts.append(_MARKS.sub(r'\\\1', text[at : match.start()]))
    at = match.end()
    ends = '' if text[at : at + 1].isspace() or not text[at : at + 1].isalnum() else '\\ '
    parts.append(f'``{" ".join(match[1].split())}``{ends}')
  parts.append(_MARKS.sub(r'\\\1', text[at:]))
  lines[:] = ''.join(parts).split('\n')


def setup(app):
  """Before napoleon, which reads Args and Returns."""
  app.connect('autodoc-process-docstring', as_rst, priority=100)
