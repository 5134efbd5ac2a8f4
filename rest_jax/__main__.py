"""`python -m rest_jax COMMAND ...`: the commands of `rest_jax.commands`."""

from rest_jax.commands import COMMANDS, entry, main

__all__ = ['COMMANDS', 'main']

if __name__ == '__main__':
  entry()
