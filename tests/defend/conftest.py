"""What test files of this folder share beside the toys."""

import pytest
from defence_toys import devices


@pytest.fixture(scope='module')
def alone():
  """One device, where several are one test's matter: programs for many compile longer."""
  with devices(1):
    yield
