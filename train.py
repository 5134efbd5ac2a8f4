"""Trains an image classifier: `python train.py --help`, and rest_jax/commands/train.py."""

from rest_jax.commands import script

if __name__ == '__main__':  # workers of the data pipeline import this file again
  script('train')
