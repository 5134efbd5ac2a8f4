"""What holds in every test: four virtual CPU devices, strict promotion, fixed examples."""

import os

# Before JAX is imported anywhere, in this process and in the ones that tests start.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=4',
    # Most of the suite's time is compilation; this leaves XLA's own passes as they are.
    '--xla_backend_optimization_level=0',
  ]
).strip()

import hypothesis
import jax
import pytest

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

hypothesis.settings.register_profile(
  'suite',
  deadline=None,  # the first example of a shape compiles
  derandomize=True,  # the same examples on every run
  max_examples=10,
  suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile('suite')


@pytest.fixture
def key():
  """A PRNG key."""
  return jax.random.key(0)
