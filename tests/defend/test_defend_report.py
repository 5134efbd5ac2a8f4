"""What the report says, from rows made by hand; and the document that carries it."""

import dataclasses
import html.parser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rest_jax.defend.figures import draw_bars, draw_radii
from rest_jax.defend.table import (
  UNDEFENDED,
  DefenceRow,
  findings,
  of_all_attacks,
  percent,
  verdict,
)
from rest_jax.evaluation.document import (
  Bullets,
  Cell,
  Figure,
  Heading,
  Table,
  Text,
  to_html,
  to_markdown,
)
from rest_jax.evaluation.figures import Strip, draw_strips
from rest_jax.evaluation.intervals import accuracy_interval, mcnemar


def share(count):
  return accuracy_interval(count, 100)


def row(defence, eps, clean, non_adaptive, adaptive, p=0.5, **fields):
  worst = non_adaptive if adaptive is None else min(non_adaptive, adaptive)
  base = {2 / 255: 40, 8 / 255: 0}[eps]
  values = dict(
    defence=defence, attack='pgd', norm='linf', eps=eps, images=100,
    clean_undefended=share(99), clean=share(clean), non_adaptive=share(non_adaptive),
    adaptive=None if adaptive is None else share(adaptive), worst=share(worst),
    gain=(worst - base) / 100, gain_p=None if defence == UNDEFENDED else p,
    masked_gradients=False, reasons=(), raised=(),
  )  # fmt: skip
  return DefenceRow(**(values | fields))


ROWS = [
  row(UNDEFENDED, 2 / 255, 99, 40, 40),
  row('jpeg 0.5', 2 / 255, 97, 80, 45),
  row('median 0.5', 2 / 255, 90, 70, 60, p=0.001),
  row(UNDEFENDED, 8 / 255, 99, 0, 0),
  row('jpeg 0.5', 8 / 255, 97, 30, 0),
  row('median 0.5', 8 / 255, 90, 20, 0),
]


def test_the_verdict_follows_the_figures():
  assert verdict(ROWS) == (
    '1 of 2 defences make the model significantly more robust against an attacker who knows them. '
    'The most that one adds is 20 points (median 0.5, PGD within 2/255 in linf): 60 % withstand '
    'the attack, where 90 % are right without one.'
  )
  chance = [dataclasses.replace(r, gain_p=r.gain_p and 0.5) for r in ROWS]
  assert verdict(chance).startswith('No defence makes the model significantly more robust')
  masked = [dataclasses.replace(r, masked_gradients=r.defence != UNDEFENDED) for r in ROWS]
  assert verdict(masked).startswith('No defence makes')  # what is flagged counts for nothing
  worse = [dataclasses.replace(r, gain=-abs(r.gain)) for r in ROWS]
  assert verdict(worse).startswith('No defence makes')
  unaware = [dataclasses.replace(r, adaptive=None) for r in ROWS]
  assert 'an attacker who knows a defence can do better' in verdict(unaware)
  assert verdict(ROWS[:1]).startswith('No defence was evaluated')


def test_the_verdict_is_of_an_attacker_with_all_the_attacks():
  """Each attack alone leaves 60 and 55 images of 100 behind the defence, both together 20."""
  first, second = frozenset(range(60)), frozenset(range(40, 95))
  near = dict(eps=2 / 255, clean=95)
  rows = [
    row(UNDEFENDED, **near, non_adaptive=40, adaptive=None, withstood=frozenset(range(40))),
    row('own', **near, non_adaptive=60, adaptive=60, p=1e-4, withstood=first),
    row(
      UNDEFENDED, **near, non_adaptive=30, adaptive=None, attack='square',
      withstood=frozenset(range(30)),
    ),
    row('own', **near, non_adaptive=55, adaptive=55, p=1e-5, attack='square', withstood=second),
  ]  # fmt: skip
  assert verdict(rows[:2]).startswith('1 of 1 defences') and '60 % withstand' in verdict(rows[:2])
  assert verdict(rows).startswith('No defence makes')
  undefended, own = of_all_attacks(rows)
  assert undefended.worst.value == 0.3 and own.worst.value == 0.2
  assert own.gain == -0.1 and own.attack == 'all 2 attacks'
  assert own.gain_p == mcnemar(20, 30, two_sided=True)
  better = [dataclasses.replace(r, withstood=r.withstood | set(range(40, 100))) for r in rows]
  rows = [
    one if one.defence == UNDEFENDED else other for one, other in zip(rows, better, strict=True)
  ]
  assert '60 % withstand' in verdict(rows) and 'all 2 attacks within 2/255' in verdict(rows)


def test_the_findings_name_radius_defence_and_price():
  near, far, price, bound = findings(ROWS)
  assert near == (
    'PGD within 2/255 (linf): undefended, the model stays right on 40 % of the images. Against an '
    'attacker who does not know of them, jpeg 0.5 is the best defence with 80 %, and has 45 % '
    'once the attacker knows; then median 0.5 is the best with 60 %.'
  )
  assert far.endswith('with 30 %; once the attacker knows, none is left behind any of them.')
  assert price == (
    'Without an attack 99 % are right undefended, from 90 % (median 0.5) to 97 % (jpeg 0.5) behind '
    'the defences.'
  )
  assert bound.startswith('These figures are upper bounds') and 'AutoAttack' in bound
  quoted = [dataclasses.replace(r, attack='auto_attack') for r in ROWS]
  assert not any('upper bounds' in text for text in findings(quoted))
  flagged = [dataclasses.replace(ROWS[1], masked_gradients=True), *ROWS[:1]]
  assert any('Signs of masked gradients: jpeg 0.5.' in text for text in findings(flagged))


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    *((0.0, '0 %'), (0.0312, '3.1 %'), (0.05, '5 %'), (0.876, '88 %'), (1, '100 %')),
    *((0.996, '99.6 %'), (0.0002, '0.02 %')),
  ],
)
def test_percent(value, text):
  assert percent(value) == text


class Parser(html.parser.HTMLParser):
  """Notes tags that are left open, texts, and what is fetched from elsewhere."""

  def __init__(self):
    super().__init__()
    self.open, self.texts, self.sources, self.classes = [], [], [], []

  def handle_starttag(self, tag, attrs):
    found = dict(attrs)
    self.sources += [found[name] for name in ('src', 'href') if name in found]
    self.classes += [found['class']] if 'class' in found else []
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)


@pytest.fixture
def blocks(tmp_path):
  picture = tmp_path / 'figures' / 'x.png'
  picture.parent.mkdir()
  Image.new('RGB', (2, 2), (9, 9, 9)).save(picture)
  table = Table(
    'Of <it>', ['a', 'b'], [[Cell('x & y'), Cell('1.0', 'best')], [Cell('z'), Cell('2', 'worst')]]
  )
  return [
    Heading('Head'), Text('Use `--flag <x>`.'), Text('Odd ` mark', strong=True),
    Bullets(['one', '<b>two</b>']), table, Figure(picture, 'A "figure"'),
  ]  # fmt: skip


def test_the_page_is_well_formed_escaped_and_whole(blocks):
  page = to_html('A < B', blocks)
  parser = Parser()
  parser.feed(page)
  assert not parser.open
  assert all(source.startswith('data:image/png;base64,') for source in parser.sources)
  assert len(parser.sources) == 1 and '<script' not in page
  for text in ('A < B', '--flag <x>', 'Odd ` mark', '<b>two</b>', 'x & y', 'Of <it>'):
    assert text in parser.texts
  assert {'best', 'worst', 'strong'} <= set(parser.classes)
  assert 'prefers-color-scheme: dark' in page and 'width=device-width' in page


def test_markdown_links_its_figures(blocks, tmp_path):
  text = to_markdown('Title', blocks, tmp_path)
  assert text.startswith('# Title\n')
  assert '| x & y | **1.0** |' in text and '| z | *2* |' in text
  assert '](figures/x.png)' in text and '**Odd ` mark**' in text and '- one\n' in text


def test_figures_are_drawn(tmp_path):
  draw_bars(tmp_path / 'bars.png', ROWS[:3])
  draw_radii(tmp_path / 'radii.png', ROWS)
  pictures = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
  strips = [
    Strip('clean', pictures, ['a', '$b', 'c'], [True, False, None]),
    Strip('grey', pictures[..., :1], ['1'] * 3, [None] * 3),
  ]
  draw_strips(tmp_path / 'strips.png', strips)
  for name in ('bars', 'radii', 'strips'):
    with Image.open(tmp_path / f'{name}.png') as image:
      assert min(image.size) > 100 and np.ptp(np.asarray(image.convert('L'))) > 100
  assert sorted(p.name for p in Path(tmp_path).iterdir()) == ['bars.png', 'radii.png', 'strips.png']
