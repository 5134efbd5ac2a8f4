"""How far a linear model on the pixels gets on digit_scenes: the floor that a real model must beat.

  python benchmarks/linear_pixels.py

Logistic regression by stochastic gradients on all 20,000 train scenes, pixels standardised.
"""

import numpy as np
from sklearn.linear_model import SGDClassifier

from rest_jax import data

EPOCHS, CHUNK = 10, 2000


def pixels(source) -> tuple[np.ndarray, np.ndarray]:
  """All images (N, 64*64*3) float32 with about zero mean and unit range, and labels (N,)."""
  examples = [source[i] for i in range(len(source))]
  images = np.stack([example['image'].ravel() for example in examples])
  return images.astype(np.float32) / 127.5 - 1, np.array([e['label'] for e in examples])


def main() -> None:
  sources = data.load('digit_scenes', cache=True)
  train, labels = pixels(sources.train)
  test, truth = pixels(sources.test)
  for alpha in (1e-4, 1e-2, 1e0):
    model = SGDClassifier(loss='log_loss', alpha=alpha, average=True, random_state=0)
    order = np.random.default_rng(0)
    for _ in range(EPOCHS):
      shuffled = order.permutation(len(train))
      for start in range(0, len(train), CHUNK):
        rows = shuffled[start : start + CHUNK]
        model.partial_fit(train[rows], labels[rows], classes=np.arange(10))
    scores = model.score(train, labels), model.score(test, truth)
    print('alpha {:g}: train {:.1%}, test {:.1%}'.format(alpha, *scores))


if __name__ == '__main__':
  main()
