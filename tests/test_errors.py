"""What an error says about a word that is not known."""

from rest_jax.errors import did_you_mean

KNOWN = ('stage1', 'stage2', 'head')


def test_the_nearest_words_come_first():
  assert did_you_mean('stge2', KNOWN) == 'did you mean stage2 or stage1?'
  assert did_you_mean('stge2', iter(KNOWN), count=1) == 'did you mean stage2?'
  assert did_you_mean('heda', KNOWN, shown='--{}'.format) == 'did you mean --head?'


def test_where_nothing_is_near_the_rest_is_offered():
  assert did_you_mean('xyz', KNOWN) == 'did you mean stage1 or stage2 or head?'
  assert did_you_mean('xyz', KNOWN, ['neck']) == 'did you mean neck?'
  assert did_you_mean('xyz', KNOWN, 'see --help') == 'see --help'
  assert did_you_mean('hxyz', KNOWN, cutoff=0.2).startswith('did you mean head')
  assert did_you_mean(3, KNOWN, 'take one') == 'take one'
