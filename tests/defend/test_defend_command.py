"""The command line of defend.py."""

import dataclasses
import shlex
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import pytest

from rest_jax.attacks import list_attacks
from rest_jax.defend import command, list_denoisers
from rest_jax.defend.report import _command_line
from rest_jax.errors import UserError


def parse(*args):
  return command.parse(['defend.py', *args], 'Usage.')


def test_defaults():
  parsed = parse('--attack', 'pgd')
  assert (parsed.attack, parsed.norm, parsed.model) == (('pgd',), 'linf', 'digit_scenes')
  assert parsed.eps == (4 / 255, 8 / 255) and parsed.strength == (0.5,)
  assert parsed.adaptive and parsed.study is None and parsed.steps is None
  assert parsed.output == Path('work/defend_digit_scenes')
  assert set(command.DEFAULT_DEFENCES) <= set(list_denoisers())
  families = {name for f in ('spatial', 'frequency', 'latent') for name in list_denoisers(f)}
  assert families == set(list_denoisers())
  for family in ('spatial', 'frequency', 'latent'):
    assert set(command.DEFAULT_DEFENCES) & set(list_denoisers(family))


def test_lists_fractions_and_what_people_call_attacks():
  parsed = parse(
    *('--attack', 'APGD', 'autoattack,pgd', 'mi-fgsm', '--eps', '8/255,0.05', '1/255', '0'),
    *('--defense', 'median', 'non_local@stage2', '--strength=0,0.25', '--no-adaptive'),
    *('--study', 'noise', '--data', 'some/folder', '-limit', '7'),
  )
  assert parsed.attack == ('apgd_ce', 'auto_attack', 'pgd', 'mi_fgsm')
  assert parsed.eps == (8 / 255, 0.05, 1 / 255, 0.0)
  assert parsed.defense == ('median', 'non_local@stage2') and parsed.strength == (0.0, 0.25)
  assert not parsed.adaptive and parsed.study == 'noise' and parsed.limit == 7
  assert parsed.output == Path('work/defend_folder')


def test_all_and_none():
  assert parse('--defense', 'all').defense == tuple(list_denoisers())
  assert parse('--defense', 'none').defense == ()
  assert parse('--norm', 'l2').eps == (0.5, 1.0)


def test_help_explains_every_flag(capsys):
  assert parse('--help') is None
  text = capsys.readouterr().out
  assert text.startswith('Usage.')
  for name in command.Command.__dataclass_fields__:
    assert f'--{name}\n' in text
  assert all(attack in text for attack in list_attacks()) and '8/255' in text


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('--defense', 'gausian'), r"--defense: there is no 'gausian'; did you mean gaussian"),
    (('--defence', 'jpeg'), r'unknown flag --defence; did you mean --defense'),
    (('--attack', 'pdg'), "--attack: there is no attack 'pdg'; did you mean pgd"),
    (('--attack', 'cw'), r"--attack cw has no norm 'linf'; it has l2"),
    (('--norm', 'l0'), "unknown norm 'l0'; there are linf, l2, l1"),
    (('--eps', '8'), r'--eps is 8, beyond 1, .* such as 8/255'),
    (('--eps', '300/255'), r'--eps is 300/255, beyond 1, .* in units of \[0, 1\]$'),
    (('--eps', '-0.1'), r'--eps is a radius, a number from 0 .* not -0\.1$'),
    (('--eps', 'nan'), r'--eps is a radius, .* not nan$'),
    (('--eps', '8/0'), r'--eps is a radius, .* such as 0\.03 or 8/255, not 8/0$'),
    (('--strength', '-0.5'), r'--strength is -0.5; it takes numbers from 0'),
    (('--strength', '2'), r'--strength is 2;'),
    (('--strength', 'much'), r'--strength is much;'),
    (('--no-adaptive', '--defense', 'none'), '--no-adaptive is about defences, .* none; leave'),
    (('--study', 'sound'), r"--study: invalid choice: 'sound'"),
    (('--limit', '0'), '--limit is 0; it takes a whole number from 1'),
    (('--seed', '-1'), '--seed is -1'),
    (('jpeg',), "unexpected argument 'jpeg'; attacks go to --attack, defences to --defense"),
  ],
)  # fmt: skip
def test_bad_command_lines(args, message):
  with pytest.raises(UserError, match=message) as caught:
    parse(*args)
  assert '\n' not in str(caught.value)


NUMBERS = st.one_of(
  st.floats(1e-4, 0.9), st.integers(1, 200).map(lambda n: n / 255), st.just(0.01234567)
)


@hypothesis.given(
  eps=st.lists(NUMBERS, min_size=1, max_size=3, unique=True),
  strength=st.lists(st.floats(0.01, 1), min_size=1, max_size=3, unique=True),
  ema=st.booleans(),
  architecture=st.sampled_from([None, 'rest_small']),
  data_dir=st.sampled_from([None, '/data sets/tfds']),
  adaptive=st.booleans(),
)
def test_the_command_in_the_report_is_the_one_that_was_run(eps, strength, adaptive, **fields):
  words = ['--attack', 'pgd', 'fgsm', '--norm', 'l2', '--model', 'one.pth', '--limit', '7']
  words += ['--eps', *map(repr, eps), '--strength', *map(repr, strength), '--seed', '3']
  words += ['--defense', 'gaussian', 'jpeg', '--data', 'some where', '--steps', '9']
  words += ['--ema'] * fields.pop('ema') + ['--no-adaptive'] * (not adaptive)
  for name, value in fields.items():
    words += [] if value is None else [f'--{name}', value]
  asked = parse(*words)
  printed = shlex.split(_command_line(SimpleNamespace(command=asked)))
  assert printed[:2] == ['python', 'defend.py']
  # What the figures do not depend on stands elsewhere.
  again = dataclasses.replace(parse(*printed[2:]), output=asked.output, batch_size=asked.batch_size)
  assert again == asked
