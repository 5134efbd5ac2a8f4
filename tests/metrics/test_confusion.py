"""Figures of segmentation, by hand and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import jaccard_score, recall_score

from rest_jax.errors import UserError
from rest_jax.metrics import Confusion


def test_by_hand():
  table = Confusion(4)
  table.add(np.array([[0, 0, 1], [1, 255, 0]]), np.array([[0, 1, 1], [1, 3, 0]]))
  found = table.figures()
  np.testing.assert_allclose(found.iou[:2], [2 / 3, 2 / 3])
  assert np.isnan(found.iou[2:]).all()  # pixels to ignore make no class present
  assert found.judged == 2
  np.testing.assert_allclose([found.miou, found.accuracy], [2 / 3, 4 / 5])
  np.testing.assert_allclose(found.mean_accuracy, (2 / 3 + 1) / 2)
  # A class that is only predicted counts, with an IoU of 0.
  table.add(np.array([0]), np.array([3]))
  assert table.figures().iou[3] == 0 and table.figures().judged == 3
  np.testing.assert_allclose(table.figures().miou, (2 / 4 + 2 / 3 + 0) / 3)


@given(
  hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 2)),
  hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 2)),
)
def test_as_scikit_learn(labels, predictions):
  table, half = Confusion(3), Confusion(3)
  table.add(labels[:2], predictions[:2])
  half.add(labels[2:], predictions[2:])
  table.merge(half.counts)
  found = table.figures()
  present = sorted(set(labels.ravel()) | set(predictions.ravel()))
  iou = jaccard_score(labels.ravel(), predictions.ravel(), labels=present, average=None)
  np.testing.assert_allclose(found.iou[present], iou)
  np.testing.assert_allclose(found.miou, iou.mean())
  own = sorted(set(labels.ravel()))
  recall = recall_score(labels.ravel(), predictions.ravel(), labels=own, average='macro')
  np.testing.assert_allclose(found.mean_accuracy, recall)


def test_nothing_and_what_is_wrong():
  table = Confusion(2)
  table.add(np.full(3, 255), np.zeros(3, int))
  assert table.figures().judged == 0
  assert np.isnan(table.figures().miou) and np.isnan(table.figures().accuracy)
  with pytest.raises(UserError, match=r'labels are \(3,\), predictions \(2,\)'):
    table.add(np.zeros(3, int), np.zeros(2, int))
  with pytest.raises(UserError, match='labels reach from 2 to 2, classes from 0 to 1'):
    table.add(np.array([2]), np.array([0]))
  with pytest.raises(UserError, match='predictions reach from 255'):
    table.add(np.array([1]), np.array([255]))
  with pytest.raises(UserError, match='predictions are numbers of classes, not float64'):
    table.add(np.array([1, 0]), np.array([0.9, 0.2]))  # probabilities would all be class 0
  with pytest.raises(UserError, match=r'tables are \(2, 2\), got \(2,\)'):
    table.merge(np.array([5, 5]))
  with pytest.raises(UserError, match='ignore 255 is one of the 300 classes'):
    Confusion(300)
  with pytest.raises(UserError, match='masked; where nobody judges labels are 255'):
    table.add(np.ma.masked_array([1, 0], [False, True]), np.array([1, 1]))
