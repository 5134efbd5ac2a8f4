"""What a new user does in the first hour: fine-tune, weigh classes, stop early, go on."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.models import registry
from rest_jax.train import command, load_config, pipeline, train
from rest_jax.train.config import check_config, default_config
from rest_jax.train.losses import smooth_one_hot, soft_cross_entropy, weigh_classes


def parse(*arguments):
  return command.parse(['train.py', *arguments], '').config


def finetune(*arguments):
  return parse('--config', 'finetune_folder', '--config.data.name=photos', *arguments)


def test_finetuning_works_as_it_stands():
  config = finetune()
  assert (config.model.name, config.data.image_size) == ('efficientnet_lite0', 224)
  assert config.data.mean[0] == pytest.approx(127 / 255) and config.optim.layer_decay == 0.8
  assert (config.data.eval_resize, config.augment.interpolation) == ('resize_crop', 'bicubic')


def test_another_start_brings_what_goes_with_it():
  config = finetune('--config.model.init=cifar10')
  assert (config.model.name, config.data.image_size) == ('resnet20', 32)
  assert config.data.std == (0.247, 0.2435, 0.2616) and config.data.eval_resize == 'squash'
  assert config.optim.layer_decay == 1.0  # it has three stages, whose layers are not numbered
  config = finetune('--config.model.init=digit_scenes')
  assert config.model.overrides.widths == (32, 64, 128, 256) and config.optim.layer_decay == 0.8


def test_what_the_user_sets_stays():
  given = ('--config.data.image_size=48', '--config.data.mean=(0.5,0.5,0.5)')
  config = finetune('--config.model.init=cifar10', *given)
  assert config.data.image_size == 48 and config.data.mean == (0.5, 0.5, 0.5)
  assert config.data.std == (0.247, 0.2435, 0.2616)


def test_a_checkpoint_is_called_after_its_model(tmp_path):
  (tmp_path / 'restv2_tiny.pth').write_bytes(b'')
  (tmp_path / 'weights.pth').write_bytes(b'')
  config = finetune(f'--config.model.init={tmp_path}/restv2_tiny.pth')
  assert config.model.name == 'restv2_tiny' and config.data.mean == (0.485, 0.456, 0.406)
  with pytest.raises(UserError, match=r'which model is .*weights\.pth'):
    finetune(f'--config.model.init={tmp_path}/weights.pth')
  config = finetune(f'--config.model.init={tmp_path}/weights.pth', '--config.model.name=rest_small')
  assert config.model.name == 'rest_small'


def test_nothing_is_taken_over_elsewhere():
  config = parse('--config', 'digit_scenes', '--config.model.init=cifar10')
  assert config.model.name == 'rest_lite' and config.data.image_size == 64
  with pytest.raises(UserError, match='which is empty'):
    parse('--config', 'digit_scenes', '--config.model.as_init=True')


class Labels:
  """A source that has labels alone."""

  def __init__(self, labels):
    self.labels = labels

  def __len__(self):
    return len(self.labels)


class Sources:
  class_names = ('a', 'b', 'c')
  train = Labels([0, 0, 0, 0, 0, 0, 1, 1])


def test_balanced_weights_are_those_of_scikit_learn():
  config = default_config()
  assert pipeline.class_weights(config, Sources) is None
  config.train.class_weights = 'balanced'
  weights = pipeline.class_weights(config, Sources)
  assert weights == pytest.approx((8 / (2 * 6), 8 / (2 * 2), 0.0))
  assert np.mean([weights[label] for label in Sources.train.labels]) == pytest.approx(1.0)
  # By hand: the loss of a rare class counts threefold.
  logits, targets = jnp.zeros((2, 3)), smooth_one_hot(jnp.array([0, 1]), 3)
  losses = soft_cross_entropy(logits, weigh_classes(targets, jnp.asarray(weights)))
  np.testing.assert_allclose(losses, np.log(3) * np.array([2 / 3, 2]), rtol=1e-6)


def test_weights_turn_no_smoothed_label_round():
  """76 images of one class and 3 of another: the weights are .52 and 13.2, smoothing is .1."""
  weights = jnp.array([79 / (2 * 76), 79 / (2 * 3)])
  targets = smooth_one_hot(jnp.array([0, 1]), 2, 0.1)
  mixed = 0.75 * targets[:1] + 0.25 * targets[1:]
  found = weigh_classes(jnp.concatenate([targets, mixed]), weights, 0.1)
  a, b = (float(weight) for weight in weights)
  mean = 0.75 * a + 0.25 * b
  expected = [[0.95 * a, 0.05 * a], [0.05 * b, 0.95 * b], [0.725 * mean, 0.275 * mean]]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found.argmax(axis=-1).tolist() == [0, 1, 0]


def test_class_weights_are_of_cross_entropy():
  config = default_config()
  config.train.class_weights, config.adversarial.kind = 'balanced', 'trades'
  with pytest.raises(UserError, match='weighs cross-entropy'):
    check_config(config)


@pytest.fixture(scope='module')
def run(tmp_path_factory, tiny_net):
  """A run of noise that gets no better, with patience; and the folder it was trained on."""
  place = tmp_path_factory.mktemp('first_hour')
  rng = np.random.default_rng(0)
  for index in range(20):
    folder = place / 'photos' / ('train' if index < 16 else 'test') / 'ab'[index % 5 == 0]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f'{index}.png')
  config = load_config('digit_scenes').unlock()
  config.model.name, config.model.overrides = 'tiny_net', {}
  config.data.name, config.data.image_size = str(place / 'photos'), 32
  config.data.eval_batch_size = 16
  config.augment.crop_scale, config.augment.color_jitter = (), ()
  config.optim.lr = config.optim.min_lr = 1e-12  # it learns nothing
  config.optim.warmup_epochs = 0.0
  config.train.batch_size, config.train.epochs, config.train.eval_every = 16, 9.0, 1.0
  config.train.patience, config.train.class_weights = 2, 'balanced'
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(registry._BUILDERS, 'tiny_net', tiny_net)
    yield config.lock(), place


def test_patience_ends_a_run_and_it_stays_ended(run, capsys):
  config, place = run
  result = train(config, place / 'run')
  assert result['finished'] and result['step'] == 3  # the first one is the best
  said = capsys.readouterr()
  assert 'No better since epoch 1.0, in 2 evaluations (train.patience)' in said.out + said.err
  again = train(config, place / 'run')
  assert again['step'] == 3 and again['finished']


def test_more_epochs_are_a_new_run_from_the_best(run):
  _, place = run
  found = command.parse(
    [*('train.py', '--config', 'digit_scenes', '--output', str(place / 'run'), '--more', '3')], ''
  )
  assert found.output == place / 'run_more' and found.config.train.epochs == 3.0
  assert found.config.model.init == str(place / 'run' / 'model')
  with pytest.raises(UserError, match='--more goes on after a run'):
    command.parse(['train.py', '--output', str(place / 'nothing'), '--more', '3'], '')
