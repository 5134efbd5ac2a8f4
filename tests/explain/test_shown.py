"""From a picture to an overlay on disk: `explain(classifier, 'cat.jpg').save('out.png')`."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rest_jax import explain
from rest_jax.errors import UserError
from rest_jax.explain import methods, shown
from rest_jax.models import predictions

SIDE = 8


class Toy:
  """Logits of 8 x 8 pixels whose gradient is the picture; knows how pictures are resized."""

  config = SimpleNamespace(input_size=SIDE, resize='resize_crop', crop_pct=1.0)

  def __call__(self, images):
    return (images**2).sum((1, 2))

  def preprocess(self, image):
    return predictions.preprocess(image, size=SIDE, crop_pct=1.0)

  def views(self, pictures):
    return [predictions.View(self, source) for source in predictions.expand(pictures)]


TOY = Toy()


def picture(size=(30, 20), seed=0):
  pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
  return Image.fromarray(pixels)


@pytest.fixture
def photo(tmp_path):
  picture().save(tmp_path / 'photo.png')
  return tmp_path / 'photo.png'


def saved(path):
  with Image.open(path) as image:
    return image.format, image.size, np.asarray(image.convert('RGB'))


def test_from_a_file_to_an_overlay_in_one_line(photo, tmp_path):
  found = explain.explain(TOY, str(photo), 'gradient')
  (written,) = found.save(tmp_path / 'out' / 'marked.png')
  assert written == tmp_path / 'out' / 'marked.png'
  kind, size, pixels = saved(written)
  assert kind == 'PNG' and size == (30, 20)
  # The maps are those of the pixels that the model sees, and lie where it sees them.
  alone = explain.explain(TOY, TOY.preprocess(picture()), 'gradient')
  np.testing.assert_array_equal(found.maps, alone.maps)
  stretched = explain.overlays.stretch(np.asarray(found.maps[0]))
  wanted = explain.overlay(picture(), stretched, (5, 0, 25, 20))
  np.testing.assert_array_equal(pixels, np.asarray(wanted))


@pytest.mark.parametrize(
  ('name', 'kind'), [('a.jpg', 'JPEG'), ('a.JPEG', 'JPEG'), ('a.webp', 'WEBP'), ('A.PNG', 'PNG')]
)
def test_the_suffix_is_the_format(photo, tmp_path, name, kind):
  explain.explain(TOY, photo, 'gradient').save(tmp_path / name)
  assert saved(tmp_path / name)[:2] == (kind, (30, 20))


def test_several_pictures_have_numbers_or_names(photo, tmp_path):
  turned, exif = tmp_path / 'turned.jpg', Image.Exif()
  exif[0x0112] = 6
  picture((24, 16), 1).save(turned, exif=exif)
  found = explain.explain(TOY, [photo, turned, picture((9, 9))], 'gradient', [0, 1, 2])
  assert found.maps.shape == (3, SIDE, SIDE) and found.targets.tolist() == [0, 1, 2]
  numbered = found.save(str(tmp_path / 'out.png'))
  assert [path.name for path in numbered] == ['out_1.png', 'out_2.png', 'out_3.png']
  assert [saved(path)[1] for path in numbered] == [(30, 20), (16, 24), (9, 9)]
  named = found.save(tmp_path / 'folder')
  assert [path.name for path in named] == ['photo.png', 'turned.png', 'picture_3.png']
  (tmp_path / 'v1.2').mkdir()
  assert found.save(tmp_path / 'v1.2')[0] == tmp_path / 'v1.2' / 'photo.png'


def test_a_pillow_image_is_as_its_file(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 8
  picture((24, 16)).save(tmp_path / 'turned.png', exif=exif)
  with Image.open(tmp_path / 'turned.png') as opened:
    both = explain.explain(TOY, [tmp_path / 'turned.png', opened], 'gradient')
    assert np.array_equal(TOY.preprocess(opened)[0], TOY.views(opened)[0].look().pixels)
  np.testing.assert_array_equal(both.maps[0], both.maps[1])


def test_many_pictures_go_through_in_batches_of_one_shape(monkeypatch):
  monkeypatch.setattr(methods, '_TOGETHER', 3)
  pictures = [picture(seed=seed) for seed in range(7)]
  found = explain.explain(TOY, pictures, 'occlusion', [0, 1, 2, 0, 1, 2, 0])
  pixels = np.concatenate([TOY.preprocess(one) for one in pictures])
  whole = explain.explain(TOY, pixels, 'occlusion', [0, 1, 2, 0, 1, 2, 0])
  for part, all_of_it in zip(found[:-1], whole[:-1], strict=True):
    if part is not None:
      np.testing.assert_allclose(part, all_of_it, atol=1e-6)
  with pytest.raises(UserError, match='one class index or 7 of them'):
    explain.explain(TOY, pictures, 'gradient', [0, 1, 2])


def test_arrays_are_drawn_where_they_are_given_again(tmp_path):
  images = np.random.default_rng(0).random((2, SIDE, SIDE, 3), np.float32)
  found = explain.explain(TOY, images, 'gradient')
  written = found.save(tmp_path / 'x.png', images)
  assert [path.name for path in written] == ['x_1.png', 'x_2.png']
  assert [path.name for path in found.save(tmp_path, images)] == ['picture_1.png', 'picture_2.png']
  grey = explain.explain(TOY, images[..., :1], 'gradient')
  assert saved(grey.save(tmp_path / 'g.png', images[..., :1])[0])[1] == (SIDE, SIDE)
  with pytest.raises(UserError, match=r'maps are of arrays.*save\(path, images\)'):
    found.save(tmp_path / 'x.png')
  with pytest.raises(UserError, match='as many as maps'):
    found.save(tmp_path / 'x.png', images[:1])


def test_an_explanation_is_a_tree_of_arrays():
  images = jnp.asarray(np.random.default_rng(0).random((1, SIDE, SIDE, 3), np.float32))
  traced = jax.jit(lambda x: explain.explain(TOY, x, 'gradient'))(images)
  np.testing.assert_allclose(traced.maps, explain.gradient(TOY, images), atol=1e-6)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(traced))
  of_picture = explain.explain(TOY, picture(), 'gradient')
  assert jax.device_get(of_picture).shown == of_picture.shown


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('x.gif', r'x\.gif: an overlay is a file that ends in \.png'),
    ('x.tar.gz', 'an overlay is a file that ends in'),
    ('', 'the path of an overlay is empty'),
    ('gs://bucket/x.png', 'places under gs:// are not'),
    ('photo.png/x.png', r'cannot write to .*x\.png.*another path'),
  ],
)
def test_where_overlays_do_not_go(photo, tmp_path, monkeypatch, name, message):
  monkeypatch.chdir(tmp_path)
  found = explain.explain(TOY, photo, 'gradient')
  with pytest.raises(UserError, match=message) as caught:
    found.save(name)
  assert '\n' not in str(caught.value)


def test_what_is_no_picture_and_who_takes_none(photo, tmp_path):
  with pytest.raises(UserError, match=r'pictures need a model .* a Classifier; a function takes'):
    explain.explain(lambda images: images.mean((1, 2)), photo, 'gradient')
  with pytest.raises(UserError, match=r'cannot read .*none\.png: no such file'):
    explain.explain(TOY, tmp_path / 'none.png', 'gradient')
  with pytest.raises(UserError, match='a picture is a file, a Pillow image'):
    explain.explain(TOY, [photo, 3], 'gradient')
  with pytest.raises(UserError, match=r"not the file 'a\.png'; .* explain\.explain takes pictures"):
    explain.gradient(TOY, 'a.png')
  with pytest.raises(UserError, match='not a Pillow image'):
    explain.insertion_deletion(TOY, picture(), np.ones((1, SIDE, SIDE)))
  found = explain.explain(TOY, photo, 'gradient')
  photo.unlink()
  with pytest.raises(UserError, match=r'cannot read .*photo\.png'):
    found.save(tmp_path / 'x.png')


def test_long_pictures_and_formats_with_a_limit(tmp_path):
  found = explain.explain(TOY, Image.new('RGB', (17000, 40), (9, 90, 9)), 'gradient')
  with pytest.raises(UserError, match=r'x\.webp: 17000x40 px are more than the 16,383 a side'):
    found.save(tmp_path / 'x.webp')
  assert saved(found.save(tmp_path / 'x.jpg')[0])[1] == (17000, 40)
  assert shown.suffix_for((4000, 3000)) == '.jpg' and shown.suffix_for((640, 480)) == '.png'
  assert shown.suffix_for((70000, 100)) == '.png'
