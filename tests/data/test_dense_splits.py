"""Splits of folders of objects and of pixels: what each is for."""

import pytest

from rest_jax.data.dense_splits import (
  Splits,
  coco_splits,
  find_splits,
  pixel_splits,
  voc_splits,
)
from rest_jax.errors import UserError

NO_TEST = 'no split test with annotations: '


@pytest.mark.parametrize(
  ('known', 'asked', 'wanted'),
  [
    (['test', 'train', 'trainval', 'val'], {}, Splits('train', 'val', 'test')),
    (['test', 'train'], {}, Splits('train', '', 'test')),
    (['train', 'val'], {}, Splits('train', '', 'val', f'{NO_TEST}val is judged')),
    (
      ['train2017', 'val2017'],
      {},
      Splits('train2017', '', 'val2017', f'{NO_TEST}val2017 is judged'),
    ),
    (
      ['training', 'validation'],
      {},
      Splits('training', '', 'validation', f'{NO_TEST}validation is judged'),
    ),
    (['Test', 'Train', 'Valid'], {}, Splits('Train', 'Valid', 'Test')),
    (['train', 'train2017', 'test'], {}, Splits('train', '', 'test')),  # the exact name wins
    # What is asked for stays as it is, known or not: whoever opens it says what is wrong.
    (['train2014', 'train2017', 'val2017'], {'train': 'train2014', 'test': 'val2017'},
     Splits('train2014', '', 'val2017')),
    (['train', 'val', 'test'], {'test': 'val'}, Splits('train', '', 'val')),
    (['train', 'val', 'test'], {'test': 'val', 'val': 'test'}, Splits('train', 'test', 'val')),
    (['train', 'val', 'test', 'own'], {'val': 'own'}, Splits('train', 'own', 'test')),
    (['other'], {}, Splits('train', '', 'test', f'{NO_TEST}test is judged')),
  ],
)  # fmt: skip
def test_roles(known, asked, wanted):
  assert find_splits(known, 'here', **asked) == wanted


def test_two_that_could_be_meant_are_asked_for():
  with pytest.raises(UserError, match=r'train2014 and train2017: .*data.train_split$'):
    find_splits(['train2014', 'train2017', 'val2017'], 'here')
  with pytest.raises(UserError, match=r'val2014 and val2017: .*data.val_split \(--split'):
    find_splits(['train2017', 'val2014', 'val2017'], 'here')


def test_what_a_folder_has(tmp_path):
  """Lists of pictures without annotations, as VOC 2012's test, are none."""
  coco, voc, ade, camvid = (tmp_path / name for name in ('coco', 'voc', 'ade', 'camvid'))
  for folder in ('annotations',):
    (coco / folder).mkdir(parents=True)
  for name in ('instances_train2017', 'instances_val2017', 'captions_val2017'):
    (coco / 'annotations' / f'{name}.json').write_text('{}')
  for part in ('Main', 'Segmentation'):
    (voc / 'ImageSets' / part).mkdir(parents=True)
    for split, name in (('train', 'a'), ('val', 'b'), ('test', 'c')):
      (voc / 'ImageSets' / part / f'{split}.txt').write_text(f'{name}\n')
  for folder, ending in (('Annotations', 'xml'), ('SegmentationClass', 'png')):
    (voc / folder).mkdir()
    for name in 'ab':
      (voc / folder / f'{name}.{ending}').write_text('')
  for split in ('training', 'validation'):
    (ade / 'annotations' / split).mkdir(parents=True)
  for split in ('train', 'test'):
    (camvid / f'{split}annot').mkdir(parents=True)
  assert coco_splits(coco) == ['train2017', 'val2017']
  assert voc_splits(voc) == ['train', 'val'] == pixel_splits(voc)
  assert pixel_splits(ade) == ['training', 'validation']
  assert pixel_splits(camvid) == ['test', 'train']
