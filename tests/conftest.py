"""What holds in every test: four virtual CPU devices, strict promotion, fixed examples, own data.

Nothing of the user's is read or written: data sets stand in a folder of this run, which its xdist
workers share and which goes when it ends.
"""

import functools
import gc
import importlib.metadata
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Most of the suite's time is compilation; this leaves XLA's own passes as they are.
QUICK_FLAGS = ['--xla_backend_optimization_level=0']
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # The older emitters write far less code, and one piece of code compiles in less than many. A
  # flag that XLA does not know ends the process, so others' versions go without.
  QUICK_FLAGS += ['--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1']

# Before JAX is imported anywhere, in this process and in the ones that tests start. Tests that
# compare values may be sent to an accelerator, as `benchmarks/gpu.sh` does.
if os.environ.get('REST_JAX_TEST_DEVICE', 'cpu') == 'cpu':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = ' '.join(
    [
      os.environ.get('XLA_FLAGS', ''),
      '--xla_force_host_platform_device_count=4',
      *QUICK_FLAGS,
    ]
  ).strip()
os.environ['REST_JAX_QUICK_FLAGS'] = ' '.join(QUICK_FLAGS)  # for tests that set flags of their own

# Many tests start processes, which would compile all there is to import anew.
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
sys.dont_write_bytecode = False

# The process that starts the workers makes the folder, they find it in their environment.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  os.environ['TFDS_DATA_DIR'] = tempfile.mkdtemp(prefix='rest_jax_tests_')
  # Of the commands that tests start: what one compiles the next one finds.
  os.environ['XDG_CACHE_HOME'] = os.path.join(os.environ['TFDS_DATA_DIR'], '.cache')

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402
from jax._src.lax import lax as jax_lax  # noqa: E402
from seen_devices import devices  # noqa: E402

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')


def put(value):
  """A NumPy array or a number on the device."""
  return value if isinstance(value, jax.Array) else jax.device_put(value)


# In JAX 0.10 `jnp.asarray(array)` compiles a program that copies for every shape there is; tests
# have many. Where it is done otherwise there is nothing to be changed.
if (stage := getattr(jax_lax, 'stage_p', None)) is not None:
  stage.def_impl(put)

# One MLIR context for all programs of a process: to load the dialects anew takes a twelfth of the
# suite's time. What is not there in another JAX stays as it is.
if (make_context := getattr(mlir, 'make_ir_context', None)) is not None:
  mlir.make_ir_context = functools.cache(make_context)

hypothesis.settings.register_profile(
  'suite',
  deadline=None,  # the first example of a shape compiles
  derandomize=True,  # the same examples on every run
  max_examples=10,
  suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile('suite')


def pytest_collection_finish(session):
  """Collects garbage less often: what was imported stays, and traces are many small objects."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 20, 10)


MOST_MEMORY = 4e9  # bytes of a worker: without a limit a whole suite takes six and more


def memory() -> int:
  """Bytes that this process holds; 0 where that is not told."""
  try:
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except OSError:
    return 0


@pytest.fixture(autouse=True, scope='module')
def room_for_programs():
  """Drops what was traced and compiled before a worker has no room for more of it."""
  yield
  from rest_jax.programs import crowded

  if crowded() or memory() > MOST_MEMORY:
    jax.clear_caches()
    gc.collect()


def pytest_unconfigure(config):
  """Removes the run's data, at the end of the process that made the folder."""
  if not hasattr(config, 'workerinput'):
    shutil.rmtree(os.environ['TFDS_DATA_DIR'], ignore_errors=True)


@pytest.fixture
def key():
  """A PRNG key."""
  return jax.random.key(0)


@pytest.fixture(scope='module')
def alone():
  """Evaluations see one device, where several are not what is tested: for many programs compile
  longer, or once for each.
  """
  with devices(1):
    yield


@pytest.fixture(scope='session')
def few_scenes():
  """The data directory of this run with a small digit_scenes: 200 scenes to train, 60 to test."""
  from rest_jax.data.digit_scenes import DigitScenes, prepare

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(DigitScenes, 'SCENES', {'train': 200, 'test': 60})
    prepare(os.environ['TFDS_DATA_DIR'])  # holds a lock against the other workers
  return os.environ['TFDS_DATA_DIR']
