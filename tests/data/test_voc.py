"""Pascal VOC's XML: what is read, and one line for what is wrong."""

import numpy as np
import pytest
from PIL import Image

from rest_jax.data.objects import to_learn
from rest_jax.data.voc import load_voc
from rest_jax.errors import UserError


def thing(name, box, difficult='0'):
  edges = ''.join(
    f'<{e}>{v}</{e}>' for e, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=False)
  )
  return (
    f'<object><name>{name}</name><difficult>{difficult}</difficult>'
    f'<bndbox>{edges}</bndbox></object>'
  )


def annotation(*things, size='<size><width>60</width><height>30</height><depth>3</depth></size>'):
  return f'<annotation>{size}{"".join(things)}</annotation>'


@pytest.fixture
def root(tmp_path):
  for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
    (tmp_path / part).mkdir(parents=True)
  for name in ('one', 'two'):
    Image.new('RGB', (60, 30)).save(tmp_path / 'JPEGImages' / f'{name}.jpg')
  (tmp_path / 'ImageSets/Main/train.txt').write_text('one\n')
  (tmp_path / 'ImageSets/Main/test.txt').write_text('two\n\n')
  things = (thing('dog', (1, 1, 60, 30)), thing('cat', (11, 6, 20, 15), '1'))
  (tmp_path / 'Annotations/one.xml').write_text(annotation(*things))
  (tmp_path / 'Annotations/two.xml').write_text(annotation(thing('ant', (0, 5, 5, 9.5))))
  return tmp_path


def test_what_is_read(root):
  source = load_voc(root, 'train')
  # All splits have the classes of all files.
  assert source.class_names == load_voc(root, 'test').class_names == ('ant', 'cat', 'dog')
  example = source[0]
  # Corners count from 1 and belong to the box.
  np.testing.assert_array_equal(example['boxes'], [[0, 0, 60, 30], [10, 5, 20, 15]])
  np.testing.assert_array_equal(example['areas'], [1800, 100])
  np.testing.assert_array_equal(example['labels'], [2, 1])
  np.testing.assert_array_equal(example['ignore'], [False, True])
  assert example['image'].shape == (30, 60, 3) and example['image_id'] == 'one'
  np.testing.assert_array_equal(load_voc(root, 'test')[0]['boxes'], [[0, 4, 5, 9.5]])


def test_specks_are_judged_and_not_learnt(root):
  (root / 'Annotations/one.xml').write_text(annotation(thing('dog', (5, 5, 5, 9))))
  source = load_voc(root, 'train')
  assert source.specks == 1 and source[0]['boxes'].shape == (1, 4)
  assert to_learn(source[0])['boxes'].shape == (0, 4)


@pytest.mark.parametrize(
  ('text', 'match'),
  [
    (annotation(thing('dog', (1, 1, 64, 30))), r'object 1: the box .* lies outside .*60x30'),
    (annotation(thing('dog', (20, 1, 10, 30))), 'object 1: .* negative size'),
    (annotation(thing('dog', (1, 1, 9, 9)), thing('cow', (1, 1, 9, 9))), "2: unknown class 'cow'"),
    (annotation(thing('dog', (1, 1, 'x', 9))), 'object 1: the box .* not four numbers'),
    (annotation(thing('dog', (1, 1, 9))), 'object 1: the box .* not four numbers'),
    (annotation(thing('dog', (1, 1, 'nan', 9))), 'object 1: the box .* not four numbers'),
    (annotation(thing('dog', (1, 1, '1e999', 9))), 'object 1: the box .* not four numbers'),
    (annotation(thing('dog', (1, 1, 9, 9), 'maybe')), "object 1: difficult is 0 or 1, not 'maybe'"),
    (annotation(thing('', (1, 1, 9, 9))), "object 1: unknown class ''"),
    (annotation('<object><name>dog</name></object>'), 'object 1: the box .* not four numbers'),
    (annotation(thing('dog', (1, 1, 9, 9)), size=''), 'the size of the picture is missing'),
    (annotation(size='<size><width>0</width><height>0</height></size>'), 'size .* is missing'),
    (annotation(size='<size><width>1e999</width><height>9</height></size>'), 'size .* is missing'),
    ('<annotation>', 'is no XML'),
  ],
)
def test_what_is_wrong_is_one_line_with_the_file(root, text, match):
  (root / 'Annotations/one.xml').write_text(text)
  with pytest.raises(UserError, match=match) as error:
    load_voc(root, 'train', ('ant', 'cat', 'dog'))
  assert 'one.xml' in str(error.value) and '\n' not in str(error.value)


def test_odd_but_right(root):
  """No mark of difficult ones, floats, a part with a box of its own, other endings, a BOM."""
  part = '<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>'
  thing_ = thing('dog', ('2.5', '1e0', '30.25', ' 20 ')).replace('<difficult>0</difficult>', '')
  (root / 'Annotations/a.b.xml').write_text(
    annotation(thing_.replace('</object>', f'{part}</object>'))
  )
  (root / 'ImageSets/Main/val.txt').write_text('\ufeffa.b  1\n', encoding='utf-8')
  Image.new('RGB', (60, 30)).save(root / 'JPEGImages/a.b.PNG')
  for other in ('a.b.xml', 'a.b.c.png', 'a.b.txt'):  # none of them is the picture
    (root / 'JPEGImages' / other).write_bytes(b'')
  source = load_voc(root, 'val')
  assert source.class_names == ('ant', 'cat', 'dog') and source.files[0].name == 'a.b.PNG'
  np.testing.assert_array_equal(source[0]['boxes'], [[1.5, 0, 30.25, 20]])
  assert not source[0]['ignore'].any()
  (root / 'ImageSets/Main/val.txt').write_text('one\ntwo\none\n')
  with pytest.raises(UserError, match=r'val.txt names one twice'):
    load_voc(root, 'val')


def test_boxes_are_of_the_upright_picture(root):
  exif = Image.Exif()
  exif[0x0112] = 8
  Image.new('RGB', (60, 30)).save(root / 'JPEGImages/one.jpg', exif=exif)
  with pytest.raises(UserError, match=r'one.xml says 60x30 px, .*one.jpg has 30x60; its EXIF'):
    load_voc(root, 'train')[0]
  size = '<size><width>30</width><height>60</height></size>'
  (root / 'Annotations/one.xml').write_text(annotation(thing('dog', (1, 1, 30, 60)), size=size))
  assert load_voc(root, 'train')[0]['image'].shape == (60, 30, 3)


def test_missing_files(root):
  with pytest.raises(UserError, match=r'split .*trein.txt: did you mean train'):
    load_voc(root, 'trein')
  (root / 'JPEGImages/one.jpg').unlink()
  with pytest.raises(UserError, match=r'one.xml: the picture is missing: .*one.jpg'):
    load_voc(root, 'train')
  Image.new('RGB', (61, 30)).save(root / 'JPEGImages/one.png')
  with pytest.raises(UserError, match=r'one.xml says 60x30 px, the picture .*one.png has 61x30'):
    load_voc(root, 'train')[0]
  (root / 'Annotations/one.xml').unlink()
  with pytest.raises(UserError, match=r'cannot read the annotations .*one.xml: No such file'):
    load_voc(root, 'train')
