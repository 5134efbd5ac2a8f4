"""Lists of pictures: names with spaces, marks of a class behind them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rest_jax.data.dense_sources import load_dense
from rest_jax.data.split_lists import read_names
from rest_jax.errors import UserError


@pytest.mark.parametrize(
  ('line', 'there', 'wanted'),
  [
    ('2008_000001', (), '2008_000001'),
    ('2008_000001  1', ('2008_000001',), '2008_000001'),
    ('2008_000001 -1', ('2008_000001',), '2008_000001'),
    ('2008_000001\t0', ('2008_000001',), '2008_000001'),
    ('my photo 1', ('my photo 1', 'my photo'), 'my photo 1'),
    ('my photo 1 -1', ('my photo 1',), 'my photo 1'),
    ('my photo 1', ('my photo',), 'my photo'),
    ('my photo 7', (), 'my photo 7'),  # no mark of a class
    ('1', (), '1'),
  ],
)
def test_a_line_is_a_name_and_a_mark_goes_where_no_picture_has_it(line, there, wanted):
  assert read_names(f'\n {line} \n\n', there) == [wanted]


@given(st.lists(st.text('ab 01-', min_size=1).map(str.strip).filter(bool), unique=True))
def test_names_that_are_there_come_back_as_they_are(names):
  assert read_names('\n'.join(names), names) == names


XML = (
  '<annotation><size><width>8</width><height>6</height></size><object><name>thing</name>'
  '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object></annotation>'
)


@pytest.fixture
def voc(tmp_path):
  """Two splits of pictures whose names have spaces, as boxes and as classes of pixels."""
  for part in ('Annotations', 'JPEGImages', 'SegmentationClass'):
    (tmp_path / part).mkdir()
  for number in range(4):
    name = f'my photo {number}'
    Image.new('RGB', (8, 6)).save(tmp_path / 'JPEGImages' / f'{name}.jpg')
    Image.new('L', (8, 6), number % 2).save(tmp_path / 'SegmentationClass' / f'{name}.png')
    (tmp_path / 'Annotations' / f'{name}.xml').write_text(XML)
  for part in ('Main', 'Segmentation'):
    lists = tmp_path / 'ImageSets' / part
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('my photo 0\nmy photo 1\n')
    (lists / 'val.txt').write_text('my photo 2  1\nmy photo 3 -1\n')
  (tmp_path / 'classes.txt').write_text('ground\nthing\n')
  return tmp_path


@pytest.mark.parametrize('kind', ['boxes', 'pixels'])
def test_a_voc_folder_of_names_with_spaces_is_found_and_read(voc, kind):
  found = load_dense(str(voc), kind)
  assert found.splits == ('train', 'val', 'val')
  names = [[e['image_id'] for e in s] for s in (found.train.examples, found.test.examples)]
  assert names == [['my photo 0', 'my photo 1'], ['my photo 2', 'my photo 3']]


def test_what_is_missing_is_named_by_its_own_file(voc):
  listing = voc / 'ImageSets/Segmentation/val.txt'
  with pytest.raises(UserError, match=r'split .*Segmentation/vall.txt: did you mean val'):
    load_dense(str(voc), 'pixels', test_split='vall')
  listing.write_text('\n')
  with pytest.raises(UserError, match=r'Segmentation/val.txt has no pictures'):
    load_dense(str(voc), 'pixels', test_split='val')
  listing.write_text('my photo 1\n')
  (voc / 'JPEGImages/my photo 1.jpg').unlink()
  for kind in ('boxes', 'pixels'):
    with pytest.raises(UserError, match=r'my photo 1.* is missing'):
      load_dense(str(voc), kind, test_split='val')
