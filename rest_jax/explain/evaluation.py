"""Methods measured on a test split: what `explain.py --evaluate` does.

Part of the script: it imports `rest_jax.data` and `rest_jax.models`. Batches are shared out over
the devices, each of which holds the model; results do not depend on how many there are.
"""

from __future__ import annotations

import concurrent.futures
import queue
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rest_jax.errors import UserError
from rest_jax.evaluation.progress import clock
from rest_jax.explain import evaluation_results, measuring
from rest_jax.explain.command import Command
from rest_jax.explain.study import BASELINES, SANITY, Study, open_study, read_batch
from rest_jax.text import legible, plural


def evaluate(command: Command) -> int:
  """Measures methods over a test split and writes the tables and examples.png.

  Args:
    command: from `command.parse`.

  Returns:
    The exit status, 0.

  Raises:
    UserError: no such model, method, layer or data set, results of other settings in the output
      folder, or nowhere to write.
  """
  study = open_study(command)
  todo = [n for n in range(study.batches) if any(_missing(study, n))]
  done = study.batches - len(todo)
  state = f', {done} of {plural(study.batches, "batch")} done before' if done else ''
  began = time.monotonic()
  print(legible(study.line))
  amounts = f'{plural(len(study.methods), "method")} on {plural(study.count, "image")}'
  print(f'{amounts} of {legible(command.data)}{state}')
  steps = len(study.methods) + len(BASELINES)
  with tqdm(total=study.batches * steps, initial=done * steps, unit='batch', **_bar()) as bar:
    _over_devices(study, todo, bar)
  line = evaluation_results.write(study)
  print(f'{line}; this run took {clock(time.monotonic() - began)}')
  return 0


def _bar() -> dict[str, Any]:
  return dict(dynamic_ncols=True, disable=not sys.stderr.isatty())


def _missing(study: Study, number: int) -> Iterator[str]:
  """Methods and baselines whose results for a batch are not there yet."""
  count = min(study.command.batch_size, study.count - number * study.command.batch_size)
  for method in (*BASELINES, *study.methods):
    found = study.records.get(method, number)
    if found is None or found['count'] != count:
      yield method
  for method in study.methods if number == 0 else ():
    found = study.records.get(method, SANITY)
    if found is None or found['count'] != count:
      yield f'{method}:sanity'


def _over_devices(study: Study, todo: list[int], bar: tqdm) -> None:
  """Shares the batches out: each device takes the next one when it is free."""
  devices = jax.local_devices()[: max(1, len(todo))]
  if len(devices) == 1:
    for number in todo:
      _measure_batch(study, number, devices[0], bar)
    return
  pending: queue.SimpleQueue[int] = queue.SimpleQueue()
  for number in todo:
    pending.put(number)
  stop = []
  with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
    futures = [pool.submit(_drain, study, pending, device, bar, stop) for device in devices]
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
    finally:
      stop.append(True)


def _drain(study: Study, pending: queue.SimpleQueue, device: Any, bar: tqdm, stop: list) -> None:
  while not stop:
    try:
      number = pending.get_nowait()
    except queue.Empty:
      return
    _measure_batch(study, number, device, bar)


def _check_finite(logits: np.ndarray, number: int) -> None:
  """Refuses a model of which there is nothing to measure."""
  wrong = ~np.isfinite(logits)
  if wrong.any():
    images = plural(int(wrong.any(axis=1).sum()), 'image')
    raise UserError(
      f'{wrong.sum()} of {plural(wrong.size, "logit")} that the model gives in batch {number + 1} '
      f'are not finite ({images}), so there are no decisions to measure; check its weights'
    )


def _measure_batch(study: Study, number: int, device: Any, bar: tqdm) -> None:
  """Runs what is missing for a batch on one device and records it."""
  missing = list(_missing(study, number))
  if not missing:
    return
  with jax.default_device(device):
    classifier = jax.device_put(study.classifier, device)
    batch = read_batch(study, number)
    logits = np.asarray(measuring.logits_of(classifier, batch.images))
    _check_finite(logits[: batch.count], number)
    for name in missing:
      if name.endswith(':sanity'):
        method = name.removesuffix(':sanity')
        study.records.add(
          method, SANITY, measuring.sanity(study, classifier, batch, method, logits)
        )
        continue
      found = measuring.measure(study, classifier, batch, logits, name, device)
      study.records.add(name, number, found)
      bar.update(1)
