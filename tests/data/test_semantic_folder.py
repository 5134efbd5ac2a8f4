"""Index PNGs in the layouts of ADE20K, CamVid and Pascal VOC."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rest_jax.data import semantic_folder
from rest_jax.data.dense_sources import load_dense
from rest_jax.data.semantic_folder import check_marks, load_semantic, read_indices
from rest_jax.errors import UserError

NAMES = ('sky', 'road', 'car')
LABELS = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


def write(path, labels, palette=False):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(labels)
  if palette:
    image = Image.fromarray(labels, 'P') if labels.dtype == np.uint8 else image
    image.putpalette([255 - i // 3 for i in range(768)])
  image.save(path)


def picture(path, size=(4, 2)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size).save(path)


@pytest.mark.filterwarnings('ignore:.mode. parameter is deprecated:DeprecationWarning')
def test_a_palette_is_read_as_indices(tmp_path):
  picture(tmp_path / 'JPEGImages/b.jpg')
  picture(tmp_path / 'JPEGImages/a.jpg')
  write(tmp_path / 'SegmentationClass/b.png', LABELS, palette=True)
  (tmp_path / 'ImageSets/Segmentation').mkdir(parents=True)
  (tmp_path / 'ImageSets/Segmentation/train.txt').write_text('b\n')
  source = load_semantic(tmp_path, 'train', NAMES)
  assert len(source) == 1
  np.testing.assert_array_equal(source[0]['segmentation'], LABELS)
  assert source[0]['segmentation'].dtype == np.uint8 and source[0]['image_id'] == 'b'


def test_zero_as_other(tmp_path):
  """ADE20K counts from 1; 0 is what nobody named."""
  picture(tmp_path / 'images/validation/x.jpg')
  write(tmp_path / 'annotations/validation/x.png', np.array([[0, 1, 2, 3], [3, 3, 1, 0]], np.uint8))
  source = load_semantic(tmp_path, 'val', NAMES, zero_is_ignored=True)
  want = [[255, 0, 1, 2], [2, 2, 0, 255]]
  np.testing.assert_array_equal(source[0]['segmentation'], want)


def test_another_number_to_ignore(tmp_path):
  picture(tmp_path / 'test/x.png')
  write(tmp_path / 'testannot/x.png', np.where(LABELS == 255, 11, LABELS).astype(np.uint8))
  source = load_semantic(tmp_path, 'test', NAMES, ignore=11)
  np.testing.assert_array_equal(source[0]['segmentation'], LABELS)


def test_what_is_wrong_is_one_line_with_the_file(tmp_path):
  with pytest.raises(UserError, match=r"no pictures of 'test' with their annotations"):
    load_semantic(tmp_path, 'test', NAMES)
  picture(tmp_path / 'test/x.png')
  (tmp_path / 'testannot').mkdir()
  with pytest.raises(UserError, match=r'x.png has no annotation .*testannot/x.png'):
    load_semantic(tmp_path, 'test', NAMES)
  write(tmp_path / 'testannot/x.png', np.full((2, 4), 7, np.uint8))
  source = load_semantic(tmp_path, 'test', NAMES)
  with pytest.raises(UserError, match=r'x.png has pixels of class 7, the data set 3 classes'):
    source[0]
  write(tmp_path / 'testannot/x.png', np.zeros((2, 5), np.uint8))
  with pytest.raises(UserError, match=r'testannot/x.png has 5x2 px, the picture .* has 4x2'):
    source[0]
  picture(tmp_path / 'testannot/x.png')
  with pytest.raises(UserError, match=r'x.png has colours \(mode RGB\)'):
    source[0]
  (tmp_path / 'testannot/x.png').write_bytes(b'no')
  with pytest.raises(UserError, match='cannot read the annotation'):
    source[0]
  (tmp_path / 'test/x.png').unlink()
  with pytest.raises(UserError, match='has no pictures'):
    load_semantic(tmp_path, 'test', NAMES)
  with pytest.raises(UserError, match='1 to 255 classes, got 0'):
    load_semantic(tmp_path, 'test', ())


def test_numbers_that_are_stored_inexactly_are_refused(tmp_path):
  """Pillow spreads grey of 2 and 4 bits over 0..255, and a JPEG gives other numbers back."""
  shades = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
  shades.save(tmp_path / 'x.png', bits=8)
  np.testing.assert_array_equal(read_indices(tmp_path / 'x.png'), [[0, 1], [2, 3]])
  for bits in (2, 4):
    (tmp_path / 'x.png').write_bytes(grey_png(bits))
    with pytest.raises(UserError, match=rf'x.png has grey of {bits} bits'):
      read_indices(tmp_path / 'x.png')
  shades.save(tmp_path / 'j.png', format='jpeg')
  with pytest.raises(UserError, match=r'j.png is a JPEG'):
    read_indices(tmp_path / 'j.png')
  Image.fromarray(np.array([[True, False]])).save(tmp_path / 'b.png')
  np.testing.assert_array_equal(read_indices(tmp_path / 'b.png'), [[1, 0]])


def grey_png(bits):
  """A grey PNG of 1x1 px with few bits, by hand from the specification."""

  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  head = struct.pack('>IIBBBBB', 1, 1, bits, 0, 0, 0, 0)
  parts = ((b'IHDR', head), (b'IDAT', zlib.compress(b'\0\x40')), (b'IEND', b''))
  return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def test_a_picture_that_lies_on_its_side(tmp_path):
  """Classes are of the upright picture, and so is the size that chooses its canvas."""
  exif = Image.Exif()
  exif[0x0112] = 6
  (tmp_path / 'test').mkdir()
  Image.new('RGB', (2, 4)).save(tmp_path / 'test/x.jpg', exif=exif)  # upright 4 wide, 2 high
  write(tmp_path / 'testannot/x.png', LABELS)
  (tmp_path / 'classes.txt').write_text('\n'.join(NAMES))
  source = load_dense(str(tmp_path), 'pixels', train_split='test').test
  assert source[0]['image'].shape == (2, 4, 3) == (*source.size(0), 3)
  write(tmp_path / 'testannot/x.png', LABELS.T.copy())
  with pytest.raises(UserError, match=r'testannot/x.png has 2x4 px, .*x.jpg has 4x2; its EXIF'):
    source[0]


def masks(root, split, values, ade=False):
  """A split of a mask for each row of numbers."""
  folders = (f'images/{split}', f'annotations/{split}') if ade else (split, f'{split}annot')
  for number, row in enumerate(values):
    picture(root / folders[0] / f'{number}.png', (len(row), 1))
    write(root / folders[1] / f'{number}.png', np.array([row], np.uint8))


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize(
  ('classes', 'values', 'words'),
  [
    ('ground thing', [[0, 255], [0, 0]], 'masks mark objects with 255.*write 1 for thing$'),
    ('ground thing', [[255, 255]], 'write 1 for thing$'),
    ('ground cat dog', [[0, 255]], 'write 1 for cat$'),
    ('thing', [[0, 255]], 'write 1 for thing, and name what is around it before thing'),
  ],
)
def test_masks_whose_every_mark_is_ignored_are_refused(tmp_path, split, classes, values, words):
  """In whichever split: what is not learnt is as bad as what is not judged."""
  good = [[label for label, _ in enumerate(classes.split())] * 2]
  masks(tmp_path, split, values)
  masks(tmp_path, 'test' if split == 'train' else 'train', good)
  (tmp_path / 'classes.txt').write_text(classes.replace(' ', '\n'))
  with pytest.raises(UserError, match=words) as error:
    load_dense(str(tmp_path), 'pixels')
  assert f'{split}annot' in str(error.value) and '\n' not in str(error.value)


def test_of_ade20k_too_whose_zero_is_nobodys(tmp_path):
  masks(tmp_path, 'training', [[0, 255]], ade=True)
  masks(tmp_path, 'validation', [[0, 1]], ade=True)
  (tmp_path / 'classes.txt').write_text('wall')
  with pytest.raises(UserError, match=r'annotations/training.* write 1 for wall'):
    load_dense(str(tmp_path), 'pixels')


@pytest.mark.parametrize(
  ('values', 'note'),
  [
    ([[0, 1, 2, 255]], ''),
    ([[0, 1], [1, 255]], 'no pixel of car'),
    ([[0, 0]], 'no pixel of road, car'),
    ([[0, 1]] * 51, 'no pixel of car in 50 of 51 masks'),
    ([[0, 2, 255]] * 2, 'no pixel of road'),
  ],
)
def test_classes_without_a_pixel_are_said(tmp_path, values, note):
  masks(tmp_path, 'train', values)
  masks(tmp_path, 'test', [[0, 1, 2]])
  (tmp_path / 'classes.txt').write_text('\n'.join(NAMES))
  found = load_dense(str(tmp_path), 'pixels')
  assert found.train.note == note and found.test.note == ''
  assert not note or f'train: {note}' in found.line


def test_a_big_set_is_not_read_whole(tmp_path, monkeypatch):
  masks(tmp_path, 'train', [[0, 1, 2]] * 120)
  source, seen, real = load_semantic(tmp_path, 'train', NAMES), [], semantic_folder.read_indices
  monkeypatch.setattr(semantic_folder, 'read_indices', lambda p: seen.append(p) or real(p))
  assert check_marks(source) == check_marks(source) == ''
  assert len(seen) == 100 and seen[:50] == seen[50:] and len(set(seen)) == 50


def test_a_number_of_no_class_is_said_before_any_work(tmp_path):
  masks(tmp_path, 'train', [[0, 128, 255]])
  masks(tmp_path, 'test', [[0, 1]])
  (tmp_path / 'classes.txt').write_text('ground\nthing')
  with pytest.raises(UserError, match=r'0.png has pixels of class 128'):
    load_dense(str(tmp_path), 'pixels')


def test_two_pictures_of_one_name_and_names_with_spaces(tmp_path):
  for name in ('my photo.png', 'my photo.jpg', '.hidden.png', '._my photo.jpg'):
    picture(tmp_path / 'JPEGImages' / name)
  (tmp_path / 'JPEGImages/folder.png').mkdir()
  write(tmp_path / 'SegmentationClass/my photo.png', LABELS)
  lists = tmp_path / 'ImageSets/Segmentation'
  lists.mkdir(parents=True)
  (lists / 'train.txt').write_text('\ufeffmy photo\n\n', encoding='utf-8')
  assert load_semantic(tmp_path, 'train', NAMES)[0]['image_id'] == 'my photo'
  (lists / 'train.txt').write_text('my photo\nmy photo\n')
  with pytest.raises(UserError, match=r'train.txt has two pictures called my photo'):
    load_semantic(tmp_path, 'train', NAMES)
  with pytest.raises(UserError, match=r"two classes are called 'road'"):
    load_semantic(tmp_path, 'train', ('road', 'car', 'road'))
  for name in ('x.png', 'x.jpg'):
    picture(tmp_path / 'test' / name)
  write(tmp_path / 'testannot/x.png', LABELS)
  with pytest.raises(UserError, match=r'test has two pictures called x'):
    load_semantic(tmp_path, 'test', NAMES)


def test_sixteen_bits(tmp_path):
  Image.fromarray(np.array([[300, 2]], np.uint16)).save(tmp_path / 'x.png')
  np.testing.assert_array_equal(read_indices(tmp_path / 'x.png'), [[300, 2]])
