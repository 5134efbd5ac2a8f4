"""How folders are laid out: splits by name, classes, links; what is passed over or refused."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rest_jax import data
from rest_jax.data.box_files import Boxes, read_boxes
from rest_jax.data.layout import open_folder
from rest_jax.data.voc import load_voc
from rest_jax.errors import UserError


def write(root, *paths):
  """Small pictures, each of its own shade."""
  for path in paths:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    shade = len(list(root.rglob('*')))
    Image.new('RGB', (6, 4), (shade, shade, shade)).save(place, format='png')


def names(source, root):
  return [os.path.relpath(path, root) for path in source.files]


def tree(root, *splits, classes=('cat', 'dog'), each=2):
  for split, name, number in itertools.product(splits, classes, range(each)):
    write(root, f'{split}/{name}/{split}{number}.png')


@pytest.mark.parametrize(
  ('train', 'val', 'test'),
  [
    ('train', 'val', 'test'),
    ('Train', 'Valid', 'Test'),
    ('training', 'validation', 'testing'),
    ('TRAINING', 'Val', 'Testing'),
  ],
)
def test_splits_have_names_in_any_case(tmp_path, train, val, test):
  tree(tmp_path, train, val, test)
  sources = data.load(tmp_path)
  assert sources.class_names == ('cat', 'dog')
  assert sources.splits == (train, val, test)
  for source, name in zip((sources.train, sources.val, sources.test), sources.splits, strict=True):
    assert {path.split('/')[0] for path in names(source, tmp_path)} == {name}
    assert list(source.labels) == [0, 0, 1, 1]
  assert sources.line == (
    f'4 images of 2 classes from {tmp_path} ({train}): cat, dog; {val} (4 images) chooses the best '
    f'epoch, {test} (4 images) is judged once, at the end'
  )


@pytest.mark.parametrize('only', ['val', 'Validation', 'test', 'Testing'])
def test_one_split_beside_train_chooses_and_is_the_test(tmp_path, only):
  tree(tmp_path, 'Training', only)
  sources = data.load(tmp_path)
  assert sources.validation is None and sources.val is sources.test
  assert f'{only} (4 images) chooses the best epoch' in sources.line and 'once' not in sources.line


def test_splits_that_are_asked_for(tmp_path):
  tree(tmp_path, 'train', 'val', 'test')
  swapped = data.load(tmp_path, train_split='val', test_split='train')
  assert swapped.splits == ('val', 'train', 'train')
  chosen = data.load(tmp_path, val_split='train', test_split='val')
  assert chosen.splits == ('train', 'train', 'val')
  assert data.load_judged(tmp_path).split == 'test'
  for split, wanted in (('VAL', 'val'), ('training', 'train'), ('test', 'test')):
    assert data.load_judged(tmp_path, split=split).split == wanted
  for options in ({'train_split': 'nonsense'}, {'test_split': 'nonsense'}):
    with pytest.raises(UserError, match="no split 'nonsense'; it has test, train, val"):
      data.load(tmp_path, **options)
  with pytest.raises(UserError, match="no split 'nonsense'; it has test, train, val"):
    data.load_judged(tmp_path, split='nonsense')


def test_a_test_split_without_labels_is_passed_over_in_words(tmp_path):
  tree(tmp_path, 'train', 'val')
  write(tmp_path, 'test/1.png', 'test/2.png')
  sources = data.load(tmp_path)
  assert sources.splits == ('train', 'val', 'val')
  assert f'{tmp_path}/test has no labels and is passed over' in sources.line
  assert data.load_judged(tmp_path).split == 'val'
  with pytest.raises(UserError, match="no split 'test'; it has train, val"):
    data.load_judged(tmp_path, split='test')


def test_only_what_is_judged_has_to_be_there(tmp_path):
  tree(tmp_path, 'val')
  assert len(data.load_judged(tmp_path).images) == 4
  with pytest.raises(UserError, match="no split 'train'; it has val"):
    data.load(tmp_path)


def test_two_of_a_kind_are_refused(tmp_path):
  tree(tmp_path, 'train', 'val', 'validation')
  with pytest.raises(UserError, match='has val and validation: say which'):
    data.load(tmp_path, test_split='valid')
  assert data.load(tmp_path, test_split='validation').splits[2] == 'validation'


def test_a_class_may_be_called_train(tmp_path):
  write(tmp_path, *(f'{name}/{n}.png' for name in ('bus', 'train', 'test') for n in range(3)))
  assert data.load(tmp_path).class_names == ('bus', 'test', 'train')


def test_other_folders_beside_splits_are_named(tmp_path):
  tree(tmp_path, 'train', 'val')
  write(tmp_path, 'extra/1.png')
  assert 'extra: no split by the name, passed over' in data.load(tmp_path).line


def test_a_folder_without_splits(tmp_path):
  write(tmp_path, *(f'{name}/{n:02}.png' for name in ('cat', 'dog') for n in range(20)))
  sources, judged = data.load(tmp_path), data.load_judged(tmp_path)
  assert (len(sources.train), len(sources.test)) == (36, 4)
  assert (judged.split, len(judged.images)) == ('all', 40)
  assert 'test is the tenth of each class that a training on it leaves out' in judged.line()
  assert list(data.load_judged(tmp_path, split='test').images.files) == list(sources.test.files)
  with pytest.raises(UserError, match="no split 'val'; it has all, test, train"):
    data.load_judged(tmp_path, split='val')
  with pytest.raises(UserError, match="no split 'nonsense'; it has all, test, train"):
    data.load(tmp_path, train_split='nonsense')


@pytest.mark.parametrize(
  ('paths', 'words'),
  [
    (
      ('PetImages/cat/1.png', 'PetImages/dog/1.png'),
      'class, PetImages: give ROOT/PetImages, which',
    ),
    (('a/Train/cat/1.png', 'a/Test/cat/1.png'), 'a single class, a: give ROOT/a, which has Test'),
    (
      ('Images/x/1.png', 'Images/y/1.png', 'Annotation/x/1.xml'),
      'give ROOT/Images, which has x, y',
    ),
    (
      ('train/pets/cat/1.png', 'train/pets/dog/1.png', 'val/pets/cat/1.png'),
      'give ROOT/train/pets',
    ),
    (('cat/1.png', 'cat/2.png'), 'a single class, cat: put the pictures of each class'),
  ],
)
@pytest.mark.parametrize('open_it', [data.load, data.load_judged])
def test_a_single_class_is_refused_with_the_folder_that_would_do(tmp_path, paths, words, open_it):
  write(tmp_path, *paths)
  with pytest.raises(UserError) as caught:
    open_it(tmp_path)
  assert words.replace('ROOT', str(tmp_path)) in str(caught.value)


def test_what_is_hidden_is_no_picture_and_no_class(tmp_path):
  tree(tmp_path, 'train', 'val')
  hidden = ('.ipynb_checkpoints/1.png', '__MACOSX/1.png', '.thumbnails/1.png', '@eaDir/1.png')
  write(tmp_path, *(f'train/cat/{path}' for path in hidden))
  write(tmp_path, *(f'train/{path}' for path in hidden), *hidden)
  write(tmp_path, 'train/cat/._1.png', 'val/dog/.2.png')
  for name in ('Thumbs.db', '.DS_Store', 'desktop.ini'):
    (tmp_path / 'train' / 'dog' / name).write_bytes(b'x')
  sources = data.load(tmp_path)
  assert sources.class_names == ('cat', 'dog') and 'passed over' not in sources.line
  assert (len(sources.train), len(sources.val)) == (4, 4)


def test_what_is_passed_over_is_counted_with_its_reason(tmp_path):
  write(tmp_path, 'cat/1.png', 'cat/2.JPG', 'cat/3.Jfif', 'dog/1.jp2', 'dog/2.MPO', 'dog/3.avif')
  write(tmp_path, 'dog/4.png', 'cat/5.heic', 'cat/6.HEIC', 'stray.png')
  for name in ('notes.txt', 'README', 'a.xml'):
    (tmp_path / 'cat' / name).write_text('x')
  judged = data.load_judged(tmp_path)
  assert names(judged.images, tmp_path) == [
    *('cat/1.png', 'cat/2.JPG', 'cat/3.Jfif', 'dog/1.jp2', 'dog/2.MPO', 'dog/3.avif', 'dog/4.png')
  ]
  assert all(judged.images[row]['image'].shape == (4, 6, 3) for row in range(7))
  line = judged.line()
  assert '5 files passed over (2 .heic, which Pillow cannot read here: save them as PNG' in line
  assert '1 .txt, 1 .xml, 1 no suffix, no pictures by their suffix)' in line
  assert '1 picture beside the class folders passed over' in line and '\n' not in line


def test_a_class_of_pictures_that_cannot_be_read_says_so(tmp_path):
  write(tmp_path, 'cat/1.png', 'dog/1.png', 'emu/1.heic')
  with pytest.raises(UserError, match=r'no images in .*emu \(1 file passed over \(1 \.heic'):
    data.load(tmp_path)


def test_links_and_folders_with_strange_names(tmp_path):
  root, elsewhere = tmp_path / 'root', tmp_path / 'elsewhere'
  write(root, 'cat/1.png', 'cat/x.jpg/2.png', 'dog/1.png')
  write(elsewhere, 'deep/3.png', 'owl/1.png')
  (root / 'cat' / 'linked').symlink_to(elsewhere / 'deep')
  (root / 'cat' / 'again').symlink_to(root / 'cat' / 'x.jpg')
  (root / 'cat' / 'loop').symlink_to(root / 'cat')
  (root / 'dog' / 'self').symlink_to(root / 'dog' / 'self')
  (root / 'owl').symlink_to(elsewhere / 'owl')
  judged = data.load_judged(root)
  assert judged.class_names == ('cat', 'dog', 'owl')
  wanted = ['cat/1.png', 'cat/x.jpg/2.png', 'cat/linked/3.png', 'dog/1.png', 'owl/1.png']
  assert names(judged.images, root) == wanted


def test_the_order_is_not_the_file_systems(tmp_path, monkeypatch):
  write(tmp_path, *(f'{name}/{n}.png' for name in 'ab' for n in (3, 1, 2)))
  straight = list(data.load_judged(tmp_path).images.files)

  class Backwards:
    def __init__(self, entries):
      self.entries = entries

    def __enter__(self):
      return iter(sorted(self.entries.__enter__(), key=lambda e: e.name, reverse=True))

    def __exit__(self, *args):
      self.entries.__exit__(*args)

  scandir = os.scandir
  monkeypatch.setattr(os, 'scandir', lambda path: Backwards(scandir(path)))
  assert list(data.load_judged(tmp_path).images.files) == straight == sorted(straight)


def test_a_digest_is_of_names_and_labels_and_not_of_the_place(tmp_path):
  tree(tmp_path / 'one', 'train', 'val')
  tree(tmp_path / 'two', 'train', 'val')
  one = data.load(tmp_path / 'one')
  assert one.digest == data.load(tmp_path / 'two').digest
  (tmp_path / 'two' / 'val' / 'cat' / 'val1.png').unlink()
  two = data.load(tmp_path / 'two')
  assert one.digest != two.digest
  assert {name for name in one.digests if one.digests[name] != two.digests[name]} == {'val', 'test'}
  for split in ('train', 'val'):
    (tmp_path / 'one' / split / 'cat').rename(tmp_path / 'one' / split / 'emu')
  assert data.load(tmp_path / 'one').digest != one.digest


def test_many_classes_are_abbreviated(tmp_path):
  write(tmp_path, *(f'{n:03}/1.png' for n in range(20)))
  shown = '000, 001, 002, 003, 004, 005, 006, 007, ..., 019'
  assert (
    f'20 images of 20 classes from {tmp_path} (all): {shown};' in data.load_judged(tmp_path).line()
  )


@pytest.mark.parametrize('name', [b'bad\xff', b'two\nlines'])
def test_a_class_name_that_no_model_can_keep_is_refused_at_once(tmp_path, name):
  place = os.path.join(os.fsencode(tmp_path), name)
  os.makedirs(place)
  Image.new('RGB', (2, 2)).save(os.fsdecode(os.path.join(place, b'1.png')))
  write(tmp_path, 'good/1.png')
  with pytest.raises(UserError, match='rename its folder') as caught:
    open_folder(str(tmp_path))
  str(caught.value).encode()


def test_home_is_expanded_and_files_are_told_from_data_sets(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  tree(tmp_path / 'pets', 'train', 'val')
  assert len(data.load('~/pets').train) == 4
  (tmp_path / 'pets.zip').write_bytes(b'x')
  with pytest.raises(UserError, match='is a file: a data set is a folder'):
    data.load(tmp_path / 'pets.zip')
  with pytest.raises(UserError, match='gs://'):
    data.load('digit_scenes', data_dir='gs://bucket/data')


# ---- Lists of labels ----------------------------------------------------------------------------


def listed(root, text, *paths, name='labels.csv'):
  write(root, *paths)
  (root / name).write_text(text)
  return data.load_judged(root)


def test_a_list_of_names(tmp_path):
  text = 'label,file,author\ncat,a.png,x\ndog,sub/b.png,y\ncat,c.png,"z, z"\n'
  judged = listed(tmp_path, text, 'images/a.png', 'images/sub/b.png', 'other/c.png')
  assert judged.class_names == ('cat', 'dog') and not judged.numbered
  assert names(judged.images, tmp_path) == ['images/a.png', 'other/c.png', 'images/sub/b.png']
  assert list(judged.images.labels) == [0, 0, 1]
  assert f'labels from {tmp_path}/labels.csv' in judged.line()
  assert data.load_judged(tmp_path / 'labels.csv').digest == judged.digest


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.permutations(range(24)), before=st.sampled_from(['', './', 'images/../']))
def test_rows_in_any_order_and_writing_are_split_alike(tmp_path, rows, before):
  files = [f'i{index:02}.png' for index in range(24)]
  write(tmp_path, *(f'images/{file}' for file in files))
  found = []
  for order, prefix in ((range(24), ''), (rows, before)):
    lines = [f'{prefix and prefix + "images/"}{files[i]},{"ab"[i % 2]}\n' for i in order]
    (tmp_path / 'labels.csv').write_text(f'file,label\n{"".join(lines)}')
    sources = data.load(tmp_path / 'labels.csv')
    found.append([names(part, tmp_path) for part in (sources.train, sources.test)])
  assert [[os.path.normpath(name) for name in part] for part in found[1]] == found[0]
  assert len(found[0][1]) == 2


@pytest.mark.parametrize(
  'again',
  ['images/i0.png', './images/i0.png', 'images/../images/i0.png', 'link/i0.png', 'ABSOLUTE'],
)
def test_a_picture_is_one_however_it_is_written(tmp_path, again):
  write(tmp_path, 'images/i0.png', 'images/i1.png')
  (tmp_path / 'link').symlink_to('images')
  again = str(tmp_path / 'images' / 'i0.png') if again == 'ABSOLUTE' else again
  head = 'file,label,xmin,ymin,xmax,ymax\ni0.png,a,0,0,1,1\ni1.png,b,0,0,1,1\n'
  judged = listed(tmp_path, f'{head}{again},a,0,0,2,2\n')
  assert names(judged.images, tmp_path) == ['images/i0.png', 'images/i1.png']
  with pytest.raises(UserError, match=r'line 4: .*i0\.png is b here and a above'):
    listed(tmp_path, f'{head}{again},b,0,0,2,2\n')


def test_two_names_of_one_stored_file_are_two_pictures(tmp_path):
  write(tmp_path, 'images/i0.png')
  (tmp_path / 'images' / 'i1.png').symlink_to('i0.png')
  judged = listed(tmp_path, 'file,label\ni0.png,a\ni1.png,b\n')
  assert len(judged.images.files) == 2


def test_a_list_of_numbers(tmp_path):
  judged = listed(tmp_path, 'file,label\na.png,10\nb.png,2\n', 'a.png', 'b.png')
  assert judged.numbered and judged.class_names == tuple(map(str, range(11)))
  assert [judged.images[row]['label'] for row in range(2)] == [2, 10]


def test_a_list_can_be_trained_on(tmp_path):
  paths = [f'{n}.png' for n in range(20)]
  text = 'file,label\n' + ''.join(f'{path},{"ab"[n % 2]}\n' for n, path in enumerate(paths))
  listed(tmp_path, text, *paths)
  sources = data.load(tmp_path)
  assert (len(sources.train), len(sources.test)) == (18, 2)


def test_boxes_of_a_list(tmp_path):
  text = '\ufefffile,label,xmin,ymin,xmax,ymax\na.png,x,1,0,3.5,2\na.png,x,0,1,2,4\nb.png,y,,,,\n'
  write(tmp_path, 'a.png', 'b.png')
  (tmp_path / 'labels.csv').write_text(text)
  images = data.load_judged(tmp_path, extras=('boxes',)).images
  assert images[0]['boxes']._replace(path='') == Boxes(((1, 0, 3.5, 2), (0, 1, 2, 4)))
  assert images[1]['boxes']._replace(path='') == Boxes()


EDGED = 'file,label,xmin,ymin,xmax,ymax\n'


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('file,label\n', 'has no rows'),
    ('file,label\nnone.png,cat\n', 'line 2: there is no none.png'),
    ('file,label\na.png,\n', 'line 2: a.png has no label'),
    ('file,label\na.png,cat\na.png,dog\n', 'is dog here and cat above'),
    ('file,label\n,cat\n', 'line 2: no file'),
    ('file,label\ntwin.png,cat\n', 'has several twin.png: give its path'),
    ('file,label\na.png,cat\nb.png,cat\n', 'a single class'),
    ('file,label,xmin,ymin,xmax,ymax\na.png,cat,3,0,1,2\n', '3, 0, 1, 2 is no box'),
    ('file,label,xmin,ymin,xmax,ymax\na.png,cat,3,,,\n', 'is no box'),
    ('file,label,xmin,ymin,xmax,ymax\na.png,cat,0,0,nan,2\n', '0, 0, nan, 2 is no box'),
    ('file,label,xmin,ymin,xmax,ymax\na.png,cat,-inf,0,1,2\n', 'is no box'),
    (f'{EDGED}a.png,cat,.1,.2,.5,.6\n', 'line 2: .1, .2, .5, .6 is under a pixel: boxes look like'),
    (f'{EDGED}a.png,cat,0,0,1,1\nb.png,dog,0,0,1,1\n', 'boxes look like fractions; give pixels'),
    (f'{EDGED}a.png,cat,1,1,3,1.5\n', 'boxes look like fractions; give pixels'),
    ('file,label,x,y,width,height\na.png,cat,1,1,2,2\n', 'a box in x, y, width, height, and'),
    ('file,label,X,Y,W,H\na.png,cat,1,1,2,2\n', 'columns xmin, ymin, xmax, ymax, edges in pixels'),
    ('file,label,x1,y1,x2,y2\na.png,cat,1,1,2,2\n', 'a box in x1, y1, x2, y2, and'),
    ('file,label,left,top,right,bottom\na.png,cat,1,1,2,2\n', 'a box in left, top, right, bottom'),
    ('file,label,bbox_x,bbox_y,bbox_w,bbox_h\na.png,cat,1,1,2,2\n', 'a box in bbox_x, bbox_y,'),
    ('file,label,x_center,y_center,w,h\na.png,cat,1,1,2,2\n', 'a box in x_center, y_center, w, h'),
    ('file,label,bbox\na.png,cat,"[1, 1, 2, 2]"\n', 'a box in bbox, and'),
    ('file,label,Bounding Box\na.png,cat,1 1 2 2\n', 'a box in bounding box, and'),
    ('file,label,xmin,ymin,xmax\na.png,cat,1,1,2\n', 'a box in xmin, ymin, xmax, and'),
    ('file,label,xmin,ymin,w,h\na.png,cat,1,1,2,2\n', 'a box in xmin, ymin, w, h, and'),
    ('file,label,x_min,x-min,ymin,xmax,ymax\na.png,cat,1,1,1,2,2\n', 'a box in x_min, x-min,'),
  ],
)
def test_lists_that_are_wrong(tmp_path, text, words):
  with pytest.raises(UserError) as caught:
    listed(tmp_path, text, 'a.png', 'b.png', 'x/twin.png', 'y/twin.png')
  assert words in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('names', 'values'),
  [
    ('xmin,ymin,xmax,ymax', '1,0,3,2'),
    ('XMin,YMin,XMax,YMax', '1,0,3,2'),
    ('x_min,y_min,x_max,y_max', '1,0,3,2'),
    ('XMAX,X-Min,y max,Y_min', '3,1,2,0'),
    ('bbox_xmin,bbox_ymin,bbox_xmax,bbox_ymax', '1,0,3,2'),
    ('width,xmin,ymin,height,xmax,ymax', '90,1,0,80,3,2'),
    ('x,y,w,h,xmin,ymin,xmax,ymax', '7,7,7,7,1,0,3,2'),
    ('width,height', None),
    ('x,y', None),
    ('width,height,w,h', None),
    ('left,weight', None),
  ],
)
def test_boxes_are_read_under_unambiguous_names_and_other_columns_passed_over(
  tmp_path, names, values
):
  write(tmp_path, 'a.png', 'b.png')
  cells = values or ','.join('5' * len(names.split(',')))
  text = f'file,label,{names}\na.png,x,{cells}\nb.png,y{"," * cells.count(",")},\n'
  (tmp_path / 'labels.csv').write_text(text)
  boxes = data.load_judged(tmp_path, extras=('boxes',)).images[0].get('boxes')
  assert (boxes and boxes.edges) == (values and ((1, 0, 3, 2),))


def test_a_list_named_itself_and_several(tmp_path):
  write(tmp_path, 'a.png', 'b.png')
  (tmp_path / 'bare.csv').write_text('name,class\na.png,cat\n')
  with pytest.raises(UserError, match='no column file and no label'):
    data.load_judged(tmp_path / 'bare.csv')
  for name in ('one.csv', 'two.csv'):
    (tmp_path / name).write_text('file,label\na.png,cat\nb.png,dog\n')
  with pytest.raises(UserError, match=r'several lists of labels: give one of .*one\.csv'):
    data.load_judged(tmp_path)


def test_lists_of_splits(tmp_path):
  tree(tmp_path, 'train', each=1)
  write(tmp_path, 'val/a.png', 'val/b.png', 'test/c.png', 'test/d.png')
  (tmp_path / 'val.csv').write_text('file,label\nval/a.png,dog\nval/b.png,cat\n')
  (tmp_path / 'test' / 'truth.csv').write_text('file,label\nc.png,dog\nd.png,dog\n')
  sources = data.load(tmp_path)
  assert list(sources.val.labels) == [1, 0] and list(sources.test.labels) == [1, 1]


@pytest.mark.parametrize('mark', ['', '\ufeff'])  # as an editor may put in front
def test_tiny_imagenet_is_read_as_it_is(tmp_path, mark):
  for name, number in itertools.product(('n01', 'n02'), range(2)):
    write(tmp_path, f'train/{name}/images/{name}_{number}.JPEG')
    (tmp_path / 'train' / name / f'{name}_boxes.txt').write_text('x')
  write(tmp_path, 'val/images/val_0.JPEG', 'val/images/val_1.JPEG', 'test/images/test_0.JPEG')
  annotations = 'val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t63\t55\t63\t59\n'
  (tmp_path / 'val' / 'val_annotations.txt').write_text(mark + annotations)
  (tmp_path / 'words.txt').write_text('n01\tgoldfish\n')
  sources = data.load(tmp_path)
  assert sources.class_names == ('n01', 'n02') and sources.splits == ('train', 'val', 'val')
  assert len(sources.train) == 4 and list(sources.val.labels) == [1, 0]
  assert 'test has no labels and is passed over' in sources.line
  judged = data.load_judged(tmp_path, extras=('boxes',))
  # The last pixels of the boxes are given, not their edges: a column at the border is a box.
  assert judged.images[0]['boxes']._replace(path='') == Boxes(((0, 32, 45, 63),))
  assert judged.images[1]['boxes']._replace(path='') == Boxes(((63, 55, 64, 60),))
  np.testing.assert_array_equal(judged.images.labels, [1, 0])


# ---- Boxes in XML files -------------------------------------------------------------------------


def annotation(*boxes, size=(6, 4)):
  edges = (
    '<object><name>x</name><bndbox>'
    + ''.join(f'<{edge}>{value}</{edge}>' for edge, value in box.items())
    + '</bndbox></object>'
    for box in boxes
  )
  shape = f'<size><width>{size[0]}</width><height>{size[1]}</height></size>' if size else ''
  return f'<annotation>{shape}{"".join(edges)}</annotation>'


BOX = {'xmin': 1, 'ymin': 0, 'xmax': 3, 'ymax': 2}


def test_boxes_of_xml_files_are_found_by_their_path(tmp_path):
  write(tmp_path, 'cat/1.png', 'cat/2.png', 'dog/1.png', 'dog/only.png', 'dog/none.png')
  for place, text in (
    ('Annotations/cat/1.xml', annotation(BOX, {**BOX, 'xmax': 5})),
    ('Annotations/dog/1.xml', annotation({**BOX, 'ymax': 4}, size=None)),
    ('Annotations/deep/down/only.xml', annotation({**BOX, 'xmin': 2})),
  ):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(text)
  (tmp_path / 'cat' / '2.xml').write_text(annotation(BOX, size=(60, 40)))
  images = data.load_judged(tmp_path, extras=('boxes',)).images
  found = {os.path.relpath(images.files[row], tmp_path): images[row]['boxes'] for row in range(5)}
  assert found['cat/1.png'].path == str(tmp_path / 'Annotations' / 'cat' / '1.xml')
  found = {name: boxes._replace(path='') for name, boxes in found.items()}
  assert found == {
    'cat/1.png': Boxes(((0, 0, 3, 2), (0, 0, 5, 2)), (6, 4)),
    'cat/2.png': Boxes(((0, 0, 3, 2),), (60, 40)),
    'dog/1.png': Boxes(((0, 0, 3, 4),)),
    'dog/none.png': Boxes(),
    'dog/only.png': Boxes(((1, 0, 3, 2),), (6, 4)),
  }
  assert found['cat/2.png'].fractions(6, 4) == [(0, 0, 3 / 60, 2 / 40)]
  assert found['dog/1.png'].fractions(6, 4) == [(0, 0, 0.5, 1)]


def test_xml_files_of_no_picture_are_said(tmp_path):
  write(tmp_path, 'cat/1.png', 'dog/1.png')
  (tmp_path / 'Annotations').mkdir()
  said = 'no picture has the name of one of the XML files with boxes'
  assert said not in data.load_judged(tmp_path, extras=('boxes',)).line()
  (tmp_path / 'Annotations' / '2.xml').write_text(annotation(BOX))
  judged = data.load_judged(tmp_path, extras=('boxes',))
  assert said in judged.line() and 'boxes' not in judged.images[0]
  assert said not in data.load_judged(tmp_path).line()


def test_pointing_and_detection_read_one_file_alike(tmp_path):
  """Corners count from 1 and belong to the box; one pixel is a box."""
  write(tmp_path, 'JPEGImages/one.png')
  (tmp_path / 'Annotations').mkdir()
  boxes = (BOX, {'xmin': 6, 'ymin': 4, 'xmax': 6, 'ymax': 4}, {**BOX, 'xmin': 2.5})
  (tmp_path / 'Annotations/one.xml').write_text(annotation(*boxes))
  (tmp_path / 'ImageSets/Main').mkdir(parents=True)
  (tmp_path / 'ImageSets/Main/test.txt').write_text('one')
  Image.new('RGB', (6, 4)).save(tmp_path / 'JPEGImages/one.png')
  pointed = read_boxes(str(tmp_path / 'Annotations/one.xml')).edges
  assert pointed == ((0, 0, 3, 2), (5, 3, 6, 4), (1.5, 0, 3, 2))
  np.testing.assert_array_equal(load_voc(tmp_path, 'test')[0]['boxes'], pointed)


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('<annotation>', 'cannot read the boxes'),
    ('<annotation><object><polygon/></object></annotation>', 'object 1 has no bndbox; give it one'),
    (annotation({**BOX, 'xmax': 0}), 'is no box'),
    (annotation({**BOX, 'xmax': 'inf'}), '1, 0, inf, 2 is no box'),
    (annotation({'xmin': 1}), 'is no box'),
    (annotation({'xmin': 0.1, 'ymin': 0.2, 'xmax': 0.5, 'ymax': 1}), 'look like fractions; give'),
  ],
)
def test_bad_xml_is_named(tmp_path, text, words):
  write(tmp_path, 'cat/1.png', 'dog/1.png')
  (tmp_path / 'cat' / '1.xml').write_text(text)
  with pytest.raises(UserError, match=words) as caught:
    data.load_judged(tmp_path, extras=('boxes',)).images[0]
  assert '1.xml' in str(caught.value) and '\n' not in str(caught.value)


def test_transparent_pictures_are_counted_in_the_line(tmp_path):
  """What runs begin with says how many have an alpha channel, once for each split."""
  for number, mode in enumerate(('RGB', 'RGBA', 'RGBA', 'RGB')):
    for name in ('cat', 'dog'):
      place = tmp_path / 'train' / name / f'{number}.png'
      place.parent.mkdir(parents=True, exist_ok=True)
      Image.new(mode, (4, 3)).save(place)
  for name in ('cat', 'dog'):
    place = tmp_path / 'test' / name / '1.png'
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (4, 3)).save(place)
  note = 'train: 4 of 8 pictures have an alpha channel, which is left out'
  assert data.load(tmp_path).line.count('alpha') == 1 and note in data.load(tmp_path).line
  assert 'alpha' not in data.load_judged(tmp_path).line()
  assert '4 of 8 pictures have an alpha' in data.load_judged(tmp_path, split='train').line()
