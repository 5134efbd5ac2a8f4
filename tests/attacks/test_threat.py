import pytest

from rest_jax.attacks import NORMS, Threat
from rest_jax.errors import UserError


def test_a_threat_is_a_value():
  assert NORMS == ('linf', 'l2', 'l1')
  assert Threat('l2', 0.5) == Threat('l2', 0.5, targeted=False)
  assert len({Threat('l2', 0.5), Threat('l2', 0.5), Threat('l1', 0.5)}) == 2
  assert Threat('linf', float('inf')).eps == float('inf')


@pytest.mark.parametrize('eps', [-1e-9, float('nan'), 'wide', None])
def test_a_bad_radius(eps):
  with pytest.raises(UserError, match='radius'):
    Threat('linf', eps)


@pytest.mark.parametrize('norm', ['Linf', 'l0', 2, None])
def test_an_unknown_norm(norm):
  with pytest.raises(UserError, match=r'unknown norm .*linf, l2, l1'):
    Threat(norm, 0.1)
