"""The command line of explain.py, and the names that it resolves."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rest_jax.errors import UserError
from rest_jax.explain import choices, command, list_methods
from rest_jax.models.classifier import Classifier


def parse(*args):
  return command.parse(['explain.py', *args], 'Usage.')


def test_defaults():
  parsed = parse('--image', 'a.png')
  assert (parsed.image, parsed.method, parsed.target) == (('a.png',), ('group_cam',), 'predicted')
  assert (parsed.model, parsed.output) == ('efficientnet_lite0', Path('work/explain'))
  assert (parsed.seed, parsed.batch_size, parsed.query_batch) == (0, 8, None)
  assert not (parsed.curves or parsed.animate or parsed.sanity or parsed.evaluate)


def test_several_pictures_and_methods_and_evaluation():
  parsed = parse('--image', 'a.png', 'b.png', '--method=rise,grad_cam', '--curves', '-seed', '3')
  assert parsed.image == ('a.png', 'b.png') and parsed.method == ('rise', 'grad_cam')
  assert parsed.curves and parsed.seed == 3
  study = parse('--evaluate', '--data', 'some/folder', '--limit', '500')
  assert (study.limit, study.batch_size) == (500, 50)
  assert study.output == Path('work/explain_folder') and study.model == 'efficientnet_lite0'
  assert parse('--evaluate').model == 'digit_scenes'
  assert parse('--evaluate', '--model', 'cifar10').model == 'cifar10'


def test_help_explains_every_flag(capsys):
  assert parse('--help') is None
  text = capsys.readouterr().out
  assert text.startswith('Usage.')
  for name in command.Command.__dataclass_fields__:
    assert f'--{name}\n' in text
  assert '(default: group_cam)' in text


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((), 'nothing to explain: give --image FILE'),
    (('--image', 'a.png', '--evaluate'), 'takes no --image'),
    (('--image', 'a.png', '--methd', 'rise'), r'unknown flag --methd; did you mean --method'),
    (('--image', 'a.png', '--seed', 'x'), '--seed: invalid int value'),
    (('--image', 'a.png', '--seed', '-1'), '--seed is -1'),
    (('--image', 'a.png', '--groups', '0'), '--groups is 0; it takes a whole number from 1'),
    (('--image',), '--image: expected at least one argument'),
    (('--evaluate', '--curves'), '--curves has an effect with --image alone; leave it out'),
    (('--evaluate', '--animate'), '--animate has an effect with --image alone'),
    (('--evaluate', '--sanity'), '--sanity has an effect with --image alone'),
    (('--image', 'a.png', '--data', 'digit_scenes'), '--data has an effect with --evaluate alone'),
    (('--image', 'a.png', '--data_dir', 'd'), '--data_dir has an effect with --evaluate alone'),
    (('--image', 'a.png', '--split', 'test'), '--split has an effect with --evaluate alone'),
    (('--image', 'a.png', '--limit', '5'), '--limit has an effect with --evaluate alone'),
    (('--image', 'a.png', '--fine_steps'), '--fine_steps has an effect with --evaluate alone'),
    (('stray.png',), "unexpected argument 'stray.png'; pictures go to --image"),
  ],
)
def test_bad_command_lines(args, message):
  with pytest.raises(UserError, match=message) as caught:
    parse(*args)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('--output', ''), '--output is empty'),
    (('--output', 'gs://bucket/x'), '--output is gs://bucket/x: places under gs://'),
    (('--output', __file__), '--output is .*, a file'),
    (('--output', f'{__file__}/x'), 'inside .*, which is a file'),
    (('--model', 's3://bucket/x'), '--model is s3://'),
    (('--model', ''), '--model is empty'),
    (('--image', ''), '--image is empty'),
    (('--data_dir', 'hf://x'), '--data_dir is hf://x'),
  ],
)
def test_places_that_are_none(args, message):
  picture = () if '--image' in args else ('--image', 'a.png')
  with pytest.raises(UserError, match=message):
    parse(*picture, *args)


def test_homes_and_other_names(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  places = ('--output', '~/out', '--model', '~/m', '--image', '~/a.png')
  parsed = parse(*places, '--model_name', 'rest_small', '--ema')
  assert parsed.output == tmp_path / 'out' and parsed.model == str(tmp_path / 'm')
  assert parsed.image == (str(tmp_path / 'a.png'),)
  assert parse('--evaluate', '--data_dir', '~/d').data_dir == str(tmp_path / 'd')
  assert parsed.architecture == 'rest_small' and parsed.ema
  assert parse('--image', 'a.png', '--data_dir', 'None').data_dir is None
  assert parse('--evaluate', '--data', '..').output.name not in ('explain_', 'explain_..')


def test_methods_by_name():
  assert choices.choose_methods(['all']) == tuple(list_methods())
  assert choices.choose_methods(['Grad-CAM', 'rise', 'grad_cam']) == ('grad_cam', 'rise')
  with pytest.raises(UserError, match=r'grad_cm.*grad_cam'):
    choices.choose_methods(['grad_cm'])
  with pytest.raises(UserError, match='names no method'):
    choices.choose_methods([])


def test_options_go_to_the_methods_that_have_them():
  parsed = parse('--image', 'a', '--layer', 'stage2', '--groups', '8', '--query_batch', '5')
  group_cam = choices.method_options('group_cam', parsed)
  assert group_cam == {'layer': 'stage2', 'groups': 8, 'query_batch': 5}
  assert choices.method_options('rise', parsed) == {'query_batch': 5}
  assert choices.method_options('grad_cam', parse('--image', 'a')) == {'layer': None}


@pytest.mark.parametrize(
  ('methods', 'variant', 'expected'),
  [
    ('group_cam score_cam grad_cam', 'latest', ('latest', None, None)),
    ('group_cam score_cam grad_cam', 'code', (None, 'code', None)),
    ('group_cam score_cam grad_cam', 'paper', ('paper', 'paper', None)),
  ],
)
def test_a_variant_goes_to_the_methods_that_have_it(methods, variant, expected):
  parsed = parse('--image', 'a', '--variant', variant, '--method', *methods.split())
  got = [choices.method_options(name, parsed).get('variant') for name in methods.split()]
  assert tuple(got) == expected
  choices.check_own_flags(Classifier.load('digit_scenes'), methods.split(), parsed)


@pytest.mark.parametrize(
  ('methods', 'flags', 'message'),
  [
    (['grad_cam'], ('--variant', 'paper'), "'paper' is of none of the methods: grad_cam has no"),
    (['score_cam'], ('--variant', 'latest'), "'latest' is of .*: score_cam has paper and code"),
    (['rise', 'group_cam'], ('--variant', 'code'), 'group_cam has paper and latest'),
    (['grad_cam', 'rise'], ('--groups', '9'), '--groups 9: grad_cam, rise makes no groups'),
  ],
)
def test_flags_of_no_method_are_refused(methods, flags, message):
  with pytest.raises(UserError, match=message):
    choices.check_own_flags(Classifier.load('digit_scenes'), methods, parse('--image', 'a', *flags))


def test_methods_with_variants_say_which():
  for name in list_methods():
    method = choices.METHODS[name]
    assert method.options().get('variant') == (method.variants or (None,))[0]


LOGITS = np.array([[0.0, 3.0, 1.0], [5.0, 4.0, 4.5]], np.float32)


@pytest.mark.parametrize(
  ('target', 'expected'),
  [
    ('predicted', [[1], [0]]),
    ('top2', [[1, 2], [0, 2]]),
    ('cat', [[0], [0]]),
    ('DOG', [[1], [1]]),
    ('2', [[2], [2]]),
  ],
)
def test_targets(target, expected):
  found = choices.choose_targets(target, ('cat', 'dog', 'goldfish'), LOGITS)
  np.testing.assert_array_equal(found, expected)


def test_a_name_goes_before_a_number():
  names = ('2', '1', '0')  # classes called by other numbers than their own
  assert choices.choose_targets('2', names, LOGITS)[0, 0] == 0


@pytest.mark.parametrize(
  ('target', 'message'),
  [
    ('gold', r"no class 'gold'.*did you mean goldfish"),
    ('3', r"no class '3' in the model, which has numbers 0 to 2"),
    ('-1', "no class '-1'"),
    ('top4', 'the model has 3 classes, take top1 to top3'),
    ('top0', 'take top1'),
  ],
)
def test_unknown_targets(target, message):
  with pytest.raises(UserError, match=message):
    choices.choose_targets(target, ('cat', 'dog', 'goldfish'), LOGITS)


@pytest.mark.parametrize(('target', 'numbers'), [('crane', '0, 2'), ('CRANE', '0, 2')])
def test_a_name_of_two_classes_is_no_target(target, numbers):
  with pytest.raises(UserError, match=f'2 classes .* called so.* the number of one: {numbers}'):
    choices.choose_targets(target, ('crane', 'dog', 'crane'), LOGITS)
  assert choices.choose_targets('2', ('crane', 'dog', 'crane'), LOGITS)[0, 0] == 2


def test_models_that_are_none(tmp_path):
  with pytest.raises(UserError, match=r'nothing_like_it.*digit_scenes'):
    choices.open_classifier('nothing_like_it')
  with pytest.raises(UserError, match=r'no checkpoint .*rest_small\.pth'):
    choices.open_classifier(str(tmp_path / 'rest_small.pth'))
  (tmp_path / 'mine.pth').write_bytes(b'x')
  with pytest.raises(UserError, match=r'\(--architecture\), one of'):
    choices.open_classifier(str(tmp_path / 'mine.pth'))


def test_all_leaves_out_what_the_model_does_not_suit(monkeypatch):
  zoo = Classifier.load('digit_scenes')  # has ReLUs in its stem
  methods, why = choices.usable_methods(['all'], zoo)
  assert methods == tuple(list_methods()) and why == ''

  def refuses(*_):
    raise UserError('no ReLU here')

  entry = choices.METHODS['guided_backprop']
  monkeypatch.setitem(choices.METHODS, 'guided_backprop', dataclasses.replace(entry, fn=refuses))
  methods, why = choices.usable_methods(['all'], zoo)
  assert 'guided_backprop' not in methods and 'no ReLU here' in why
  assert choices.usable_methods(['guided_backprop'], zoo) == (('guided_backprop',), '')
