#!/usr/bin/env bash
# What a GPU has to show, in one call under nine minutes: the values of the tests that compare with
# other libraries, then speed beside PyTorch. Needs JAX and PyTorch for the GPU, and no network.
#
#   bash benchmarks/gpu.sh                      # all parts
#   bash benchmarks/gpu.sh golden attack        # some of: golden rest_small restv2_tiny cams attack dense
#
# From the environment:
#   OUTPUT    folder of the results (work/gpu)
#   PYTHON    with JAX, python3 by default;  TORCH_PYTHON  with torch, PYTHON by default
#   REST, GROUPCAM, AUTOATTACK   checkouts of the authors' code; without one ours alone is timed
#   PACKAGES  folder of packages that PYTHON lacks, which the summary names, made elsewhere:
#             pip install --target DIR --no-deps flax optax ml-collections ...
#   DEVICE    gpu, or cpu for a trial with small shapes
#   SLOW      what all limits are multiplied with, 1 by default: for a machine that is busy
# Each part has a limit of its own in seconds and writes its log and its tables, whatever becomes of
# the others. Status 0: all parts were done.
set -u
parts='golden rest_small restv2_tiny cams attack dense'
for name in "$@"; do
  case " $parts " in
    *" $name "*) ;;
    *)
      echo "error: there is no part $name; there are $parts" >&2
      exit 2
      ;;
  esac
done

# A place that the caller names is meant from where he stands.
absolute() { case $1 in /* | '') echo "$1" ;; *) echo "$PWD/$1" ;; esac }
interpreter() { case $1 in */*) absolute "$1" ;; *) echo "$1" ;; esac }
root=$(cd "$(dirname "$0")/.." && pwd)
OUTPUT=$(absolute "${OUTPUT:-$root/work/gpu}") PYTHON=$(interpreter "${PYTHON:-python3}")
TORCH_PYTHON=$(interpreter "${TORCH_PYTHON:-$PYTHON}") DEVICE=${DEVICE:-gpu}
REST=$(absolute "${REST:-}") GROUPCAM=$(absolute "${GROUPCAM:-}")
AUTOATTACK=$(absolute "${AUTOATTACK:-}") PACKAGES=$(absolute "${PACKAGES:-}")
SLOW=${SLOW:-1} END=$((SECONDS + ${TOTAL:-530} * ${SLOW:-1}))
mkdir -p "$OUTPUT" && cd "$root" || exit 2
SUMMARY=$OUTPUT/summary.md
export PYTHONPATH="$PWD${PACKAGES:+:$PACKAGES}${PYTHONPATH:+:$PYTHONPATH}"
# The next call finds what this one has compiled.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$OUTPUT/cache}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$OUTPUT/torch_cache}

peers=()
for pair in "rest=$REST" "groupcam=$GROUPCAM" "autoattack=$AUTOATTACK"; do
  [ -n "${pair#*=}" ] && peers+=("$pair")
done
"$TORCH_PYTHON" -c 'import torch' 2>/dev/null && peers+=("python=$(command -v "$TORCH_PYTHON")")
case " ${peers[*]-} " in *" python="*) ;; *) peers=() ;; esac

# part NAME LIMIT COMMAND...: runs it, and notes how it ended.
part() {
  local name=$1 limit=$(($2 * SLOW)) left=$((END - SECONDS)) start=$SECONDS status
  shift 2
  rm -rf "${OUTPUT:?}/$name" "$OUTPUT/$name.log" # of an earlier call
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 5 ]; then
    echo "- $name: not begun, no time left" | tee -a "$SUMMARY"
    failed=1
    return
  fi
  timeout --kill-after=5 "$limit" "$@" >"$OUTPUT/$name.log" 2>&1
  status=$?
  case $status in
    0) echo "- $name: done in $((SECONDS - start)) s" ;;
    124 | 137) echo "- $name: ended after its limit of $limit s; what was found until then stands" ;;
    *) echo "- $name: status $status; $(tail -n 1 "$OUTPUT/$name.log")" ;;
  esac | tee -a "$SUMMARY"
  [ $status -eq 0 ] || failed=1
}

# bench NAME LIMIT FLAGS...: a part of benchmarks.run.
bench() {
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" "$PYTHON" -m benchmarks.run --device "$DEVICE" --output "$OUTPUT/$name" \
    ${peers[@]+--peers "${peers[@]}"} ${quick[@]+"${quick[@]}"} "$@"
}

golden() {
  # TF32 would not hold 1e-4.
  JAX_DEFAULT_MATMUL_PRECISION=highest REST_JAX_TEST_DEVICE=$DEVICE part golden 110 \
    "$PYTHON" -m pytest -W default -p no:cacheprovider -p no:xdist --junitxml="$OUTPUT/golden.xml" -v \
    tests/models/test_rest_golden.py tests/explain/test_cam_golden.py tests/models/test_resnet.py \
    tests/models/test_peer_models.py tests/models/test_dense_registry.py
}

quick=()
models_small=rest_small models_v2=restv2_tiny cams=(--cases group_cam resnet50)
attack=(--cases AutoAttack l2) dense=(--cases detector_step)
if [ "$DEVICE" = cpu ]; then
  quick=(--quick) models_small=rest_lite models_v2=restv2_tiny cams=(--cases group_cam)
  attack=(--cases APGD) dense=()
fi

"$PYTHON" - >"$SUMMARY" <<'PY'
import importlib.metadata as metadata
import importlib.util
import platform

names = 'jax jaxlib flax optax torch torchvision timm pytest hypothesis'.split()
found = {}
for name in names:
  try:
    found[name] = metadata.version(name)
  except metadata.PackageNotFoundError:
    found[name] = '-'
print('# A run of benchmarks/gpu.sh\n')
print(f'{platform.platform()}, Python {platform.python_version()};', ', '.join(
  f'{name} {version}' for name, version in found.items()
))
needed = (
  'jax flax optax ml_collections absl jaxtyping msgpack rich yaml safetensors scipy tqdm PIL etils '
  'pytest pluggy iniconfig hypothesis sortedcontainers'
)
missing = [name for name in needed.split() if not importlib.util.find_spec(name)]
if missing:
  print('\nMissing, and to be brought in PACKAGES:', ', '.join(missing))
print()
PY
cat "$SUMMARY"

failed=0
[ $# -gt 0 ] || set -- $parts
for name in "$@"; do
  case $name in
    golden) golden ;;
    rest_small) bench rest_small 150 --suite training --models "$models_small" --repeats 5 --cases step ;;
    restv2_tiny) bench restv2_tiny 130 --suite training --models "$models_v2" --repeats 5 --cases step ;;
    cams) bench cams 50 --suite cams "${cams[@]}" --repeats 5 ;;
    attack) bench attack 50 --suite attacks "${attack[@]}" ;;
    dense) bench dense 50 --suite dense ${dense[@]+"${dense[@]}"} --repeats 5 ;;
  esac
done
for name in "$@"; do
  table=$OUTPUT/$name/benchmarks.md
  [ -f "$table" ] && sed -e "1s/.*/\n## $name/" -e '2,$s/^##/###/' "$table" >>"$SUMMARY"
done
echo "$SUMMARY"
exit $failed
