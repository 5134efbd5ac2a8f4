"""`train.py --mode evaluate`: judges a model directory or an official checkpoint on a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from absl import flags

from rest_jax.command_line import MODEL_FLAGS, wants_help
from rest_jax.commands import usage
from rest_jax.errors import UserError
from rest_jax.paths import check_folder, expanded, local, model_name, safe_name
from rest_jax.text import plural
from rest_jax.train.command import define_processes, given_processes

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from rest_jax.evaluation.records import Records
  from rest_jax.opening import Judged
  from rest_jax.train.validation import Validation

BATCH = 128  # images of classifiers at a time unless told
USAGE = """Judges a trained model on a data set.

  python train.py --mode evaluate --model work/digit_scenes/model
  python train.py --mode evaluate --model digit_scenes --output work/judged
  python train.py --mode evaluate --model rest_small.pth --data imagenet2012 --data_dir DIR

Top-1, top-5, loss, accuracy of each class, calibration, confusions and throughput go to report.md,
results.json and confusion.png in the output directory, what the model says of each image to
results.jsonl, from which an evaluation that was stopped goes on when it is run again. Test images
are resized and cropped as the model directory says; a .pth is judged as its paper did (ResT: resize
to 256, crop 224; ResTv2: crop_pct 1.0); at --image_size 384 and more whole images are warped to the
size, as ResTv2's code does. Several hosts: as in training.

A detector gets the average precision of its boxes and masks, a segmenter the intersection over
union of its classes, on digit_mosaics or a folder in the layout of COCO, Pascal VOC, ADE20K or
CamVid, with pictures of what is true and what was found."""


def main(argv: list[str]) -> int:
  """Runs the command; returns the exit status.

  Args:
    argv: as `sys.argv`; contains `--mode evaluate`.

  Raises:
    UserError: bad flags, model or data.
  """
  values = _define()
  if wants_help(argv[1:]):
    print(usage(_help(values), 'train', argv[0]))
    return 0
  try:
    extra = values(argv)[1:]
  except flags.Error as error:
    raise UserError(
      f'{str(error).splitlines()[0]}; {Path(argv[0]).name} --mode evaluate --help lists the flags'
    ) from error
  if extra:
    raise UserError(f'unexpected argument {extra[0]!r}; values go to flags, see --help')
  if not values['model'].value:
    raise UserError(
      '--mode evaluate needs --model: a work or model directory, a zoo name or a checkpoint'
    )

  from rest_jax.train import processes

  processes.initialize(*given_processes(values))
  _judge(_placed({name: values[name].value for name in values}))
  return 0


def _placed(options: dict[str, Any]) -> dict[str, Any]:
  """The flags with places expanded, a place for the report among them; looks before any work."""
  options = dict(options)
  options['model'] = model_name(options['model'], '--model')
  options['data'] = expanded(options['data'], '--data')
  if options['data_dir'] == 'None':
    options['data_dir'] = None
  if options['data_dir'] is not None:
    options['data_dir'] = str(local(options['data_dir'], '--data_dir'))
  given = options['output']
  output = _default_output(options) if given is None else local(given, '--output')
  return options | {'output': check_folder(output)}


def _judge(options: dict[str, Any]) -> None:
  from rest_jax.files import make_folder
  from rest_jax.models.dense_model import kind_at
  from rest_jax.opening import check_data, open_classifier
  from rest_jax.train import dense_validation
  from rest_jax.train.parallel import check_batch, make_mesh, memory_advice
  from rest_jax.train.processes import end_with_the_others, is_main
  from rest_jax.train.validation_report import write_report

  model, output = options['model'], options['output']
  if kind_at(model):
    line = dense_validation.judge(options)
    if is_main():
      print(line)
    return
  given = [f'--{name}' for name in ('scales', 'mirrored') if options[name] is not None]
  if given:
    raise UserError(f'{" and ".join(given)}: for segmenters, and {model} is a classifier')
  classifier = open_classifier(model, options['architecture'], options['ema'])
  mesh = make_mesh()
  options = options | {'batch_size': options['batch_size'] or BATCH}
  check_batch(options['batch_size'], 1, mesh)
  view = test_view(classifier, options)
  check_data(options['data'], classifier, model, output if is_main() else None)
  judged = _open_data(classifier, options)
  make_folder(output)  # before all images are judged
  with memory_advice(), end_with_the_others(), _naming(model, judged.where):
    result = _validated(judged, options, view, mesh)
  if is_main():
    print(write_report(output, result, judged.classifier, model, judged.where, view))


def _validated(
  judged: Judged, options: dict[str, Any], view: dict[str, Any], mesh: Mesh
) -> Validation:
  """What was measured, of images that were judged before too."""
  from rest_jax.evaluation.progress import images_bar
  from rest_jax.train.processes import is_main
  from rest_jax.train.validation import missing, validate

  records = _records(judged, options, view)
  # By their numbers in the split, so that a larger sample goes on from a smaller one.
  images = list(judged.sample.indices)[jax.process_index() :: jax.process_count()]
  left = missing(records, images)
  done = len(images) - len(left)
  if is_main() and done:
    print(f'{done} of {plural(len(images), "image")} judged before', flush=True)
  bar = images_bar(len(images), done) if is_main() else contextlib.nullcontext()
  with bar as through:
    return validate(
      judged.classifier,
      _batches(judged, left, options, view),
      mesh,
      num_classes=judged.classifier.num_classes,
      records=records,
      images=images,
      progress=through,
    )


@contextlib.contextmanager
def _naming(model: str, source: str) -> Iterator[None]:
  """Says of which model and data it was that outputs are not finite, and what to do."""
  from rest_jax.train.totals import NotFiniteError

  try:
    yield
  except NotFiniteError as error:
    raise UserError(
      f'{model} on {source}: {error}; it diverged in training or was damaged, so give --model '
      'another checkpoint'
    ) from error


def test_view(classifier: Any, options: dict[str, Any]) -> dict[str, Any]:
  """Size and crop of the test images: the flags, else the model's own.

  Returns:
    image_size, resize, crop_pct, interpolation: arguments of `data.eval_batches`.

  Raises:
    UserError: a crop_pct where nothing is cropped.
  """
  size = options['image_size'] or classifier.input_size
  own = 'squash' if size >= 384 > classifier.input_size else classifier.config.resize
  resize = options['resize'] or own
  if options['crop_pct'] is not None and resize == 'squash':
    raise UserError(
      '--crop_pct is for --resize resize_crop; these images are squashed, not cropped'
    )
  return {
    'image_size': size,
    'resize': resize,
    'crop_pct': options['crop_pct'] or classifier.config.crop_pct,
    'interpolation': options['interpolation'] or classifier.config.interpolation,
  }


def _open_data(classifier: Any, options: dict[str, Any]) -> Judged:
  """The classifier with the classes of the data, and the images that it is judged on."""
  from rest_jax.opening import open_judged
  from rest_jax.train.processes import is_main

  judged = open_judged(
    options['data'],
    options['data_dir'],
    classifier,
    options['model'],
    split=options['split'],
    limit=options['limit'],
    seed=options['seed'],
  )
  if is_main():
    print(judged.line, flush=True)
  return judged


def _records(judged: Judged, options: dict[str, Any], view: dict[str, Any]) -> Records:
  """What this process knows of its images; results of something else give way."""
  from rest_jax.evaluation.fingerprint import pin
  from rest_jax.evaluation.records import RESULTS, Records

  data = judged.data
  settings = {'data': options['data'], 'split': data.split, 'files': data.digest, 'view': view}
  number = jax.process_index()
  name = f'results-{number}.jsonl' if number else RESULTS
  model = pin(judged.classifier, judged.classifier.config.to_json())
  path = options['output'] / name
  records = Records(path, settings, model=model, place='--output', replace=True)
  if records.replaced and not number:
    print(f'{path} held results of another model or other settings; they give way', flush=True)
  return records


def _batches(
  judged: Judged, images: list[int], options: dict[str, Any], view: dict[str, Any]
) -> Iterable[dict[str, Any]]:
  """The batches of some images of the split, for this process alone."""
  from rest_jax import data
  from rest_jax.data.sample import Sample

  if not images:
    return ()
  size = options['batch_size'] // jax.process_count()
  return data.eval_batches(Sample(judged.sample.source, images), size, **view)


def _default_output(options: dict[str, Any]) -> Path:
  name = Path(options['model'])
  name = name.resolve() if name.exists() else name
  stem = name.parent.name if name.name == 'model' and name.parent.name else name.stem
  data = Path(options['data']).resolve().name
  return Path('work') / f'evaluate_{safe_name(stem, "model")}_{safe_name(data, "data")}'


def _define() -> flags.FlagValues:
  values = flags.FlagValues()
  use: Any = {'flag_values': values}
  flags.DEFINE_enum('mode', 'evaluate', ['train', 'evaluate'], 'what to do', **use)
  named = {flag.name: flag.text for flag in MODEL_FLAGS}
  flags.DEFINE_string('model', None, named['model'], **use)
  flags.DEFINE_string('architecture', None, named['architecture'], **use)
  flags.DEFINE_alias('model_name', 'architecture', **use)
  flags.DEFINE_bool('ema', False, named['ema'], **use)
  flags.DEFINE_string('data', 'digit_scenes', 'TFDS name, folder, or CSV of labels', **use)
  flags.DEFINE_string('data_dir', None, 'where TFDS data sets are', **use)
  flags.DEFINE_string(
    'split', None, 'of the data; test, else validation, all of a folder without splits', **use
  )
  flags.DEFINE_integer(
    'limit', None, 'a sample of so many images, balanced by class; all', 1, **use
  )
  flags.DEFINE_integer('seed', 0, 'of the sample', 0, **use)
  flags.DEFINE_integer('image_size', None, "side of the test images; the model's own", 32, **use)
  flags.DEFINE_enum('resize', None, ['squash', 'resize_crop'], "the model's own", **use)
  flags.DEFINE_float('crop_pct', None, "for resize_crop; the model's own", 0.01, 1.0, **use)
  flags.DEFINE_enum('interpolation', None, ['bilinear', 'bicubic'], "the model's own", **use)
  flags.DEFINE_list(
    'scales', None, "of a segmenter: sizes that it looks at; the model's own", **use
  )
  flags.DEFINE_bool('mirrored', None, "and mirror images too; the model's own", **use)
  flags.DEFINE_integer(
    'batch_size', None, f'images at a time, over all devices; {BATCH}, of dense models 8', 1, **use
  )
  flags.DEFINE_string('output', None, 'directory of the report; work/evaluate_MODEL_DATA', **use)
  define_processes(values, 'judge')
  return values


def _help(values: flags.FlagValues) -> str:
  lines = [USAGE, '', 'Flags:']
  for name in (name for name in values if name != 'model_name'):
    lines.append(f'  --{name}\n      {values[name].help} (default: {values[name].default})')
  return '\n'.join(lines)
