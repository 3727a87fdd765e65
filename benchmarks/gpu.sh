#!/usr/bin/env bash
# Runs what needs an NVIDIA GPU, the tests marked `gpu` and the GPU benchmarks, and prints one table.
#
#   benchmarks/gpu.sh [OUT]               logs and table.md go to OUT, by default gpu_results
#   REHEARSE=1 benchmarks/gpu.sh [OUT]    the same on the CPU, at sizes that only show that it runs
#
# Any machine with an NVIDIA GPU and this project's environment does (`make setup`); PYTHON names
# its interpreter, by default the one of .venv where there is one, else python3. Beam is not needed.
# Ends within LIMIT_SECONDS (530 by default): every part has a limit of its own, together 510, so
# that all of them begin; what a part leaves of its limit is the next one's. On a machine without a
# package registry, wheels that lie in the folder .whl are installed for the run, into a folder of
# their own: fill it by `pip download` where there is a registry, for that machine's Python.
#
# A new benchmark gets a line `run NAME LIMIT_SECONDS COMMAND` at the end, its limit taken from
# those of the others.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${1:-gpu_results}
[[ -x .venv/bin/python ]] && VENV_PYTHON=$PWD/.venv/bin/python
PYTHON=${PYTHON:-${VENV_PYTHON:-python3}}
LIMIT_SECONDS=${LIMIT_SECONDS:-530}
REHEARSE=${REHEARSE:-}
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false NO_ALBUMENTATIONS_UPDATE=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
TABLE=$OUT/table.md
FAILED=0
SPARE=0

install_wheels() {
  compgen -G '.whl/*.whl' >/dev/null || return 0
  local site
  site=$(mktemp -d)
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH="$site:$PYTHONPATH"
}

describe_machine() {
  "$PYTHON" - <<'PY'
from importlib.metadata import PackageNotFoundError, version
import platform

import torch

gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"{gpu}, {platform.python_implementation()} {platform.python_version()}", end="")
for name in ("torch", "transformers", "open_clip_torch", "deepspeed"):
    try:
        print(f", {name} {version(name)}", end="")
    except PackageNotFoundError:
        print(f", no {name}", end="")
print()
PY
}

# run NAME LIMIT COMMAND...: one part; its figures are the lines that begin with two spaces.
run() {
  local name=$1 limit=$2 log status began=$SECONDS state
  shift 2
  log=$OUT/${name//[^A-Za-z0-9_-]/_}.log
  limit=$(( limit + SPARE ))
  (( limit < LIMIT_SECONDS - SECONDS )) || limit=$(( LIMIT_SECONDS - SECONDS ))
  if (( limit < 15 )); then
    echo "| $name | not begun | no time was left |" >>"$TABLE"
    FAILED=1
    return
  fi
  echo "== $name: $*"
  # KILL reaches all processes of the group; on TERM a trainer would first save its model.
  timeout --signal=KILL "$limit" "$@" >"$log" 2>&1
  status=$?
  SPARE=$(( limit > SECONDS - began ? limit - SECONDS + began : 0 ))
  case $status in
    0) state=done ;;
    124 | 137) state="stopped after $limit s" ;;
    *) state="FAILED ($status)" ;;
  esac
  (( status == 0 )) || { FAILED=1; tail -n 25 "$log"; }
  echo "| **$name** | $state | $(( SECONDS - began )) s |" >>"$TABLE"
  awk -v name="$name" '
    /^  [^ ]/ { sub(/^ +/, ""); what = $0; sub(/  +.*/, "", what); value = substr($0, length(what) + 1)
                gsub(/^ +| +$/, "", value); gsub(/\|/, "/", value)
                if (value != "") printf "| %s | %s | %s |\n", name, what, value }
    /^[0-9]+ (passed|skipped|failed)|^=.*(passed|skipped|failed)/ {
                gsub(/=/, ""); gsub(/^ +| +$/, ""); printf "| %s | tests | %s |\n", name, $0 }
  ' "$log" >>"$TABLE"
}

score() {
  local name=$1 limit=$2
  shift 2
  if [[ -n $REHEARSE ]]; then
    run "$name" "$limit" "$PYTHON" benchmarks/score.py --quick --device cpu "$@"
  else
    run "$name" "$limit" "$PYTHON" benchmarks/score.py --device cuda "$@"
  fi
}

install_wheels
{ echo "$(describe_machine)"; echo; echo "| run | what | value |"; echo "|---|---|---|"; } >"$TABLE"
if [[ -z $REHEARSE ]] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
then
  echo "torch finds no NVIDIA GPU here; REHEARSE=1 runs the same on the CPU" >&2
  exit 2
fi

gpu_tests() {
  # Only files with such a test are collected: others import what a bare GPU machine lacks.
  # Other versions of third parties warn of other things, so that warnings are no errors here.
  local files
  mapfile -t files < <(grep -rlE 'mark\.gpu' tests --include='test_*.py' | sort)
  run "tests marked gpu" "$1" \
    "$PYTHON" -m pytest -m gpu -q -W default -p no:cacheprovider "${files[@]}"
}

if [[ -n $REHEARSE ]]; then
  run "train" 250 "$PYTHON" benchmarks/train/run.py --quick
  gpu_tests 80
  score "score ViT-B-32" 180 --model ViT-B-32
else
  # Vicuna 7B's shape with new weights (half of its layers below 120 GB): stage 1, then stage 2.
  run "train 7b" 240 "$PYTHON" benchmarks/train/run.py --shape 7b --sides ours usual
  gpu_tests 110
  score "score ViT-B-32" 35 --model ViT-B-32 --precision bf16 --batch-size 512 --pairs 20480
  score "score ViT-L-14" 40 --model ViT-L-14 --precision bf16 --batch-size 256 --pairs 5120 --rounds 2
  if "$PYTHON" -c 'import faiss' 2>/dev/null; then
    run "near-duplicates" 30 "$PYTHON" benchmarks/duplicates.py --device cuda
  fi
  score "score ViT-L-14 compiled" 55 --model ViT-L-14 --precision bf16 --batch-size 256 \
    --pairs 5120 --rounds 2 --compile-model
fi

echo
cat "$TABLE"
echo
echo "took $SECONDS s; logs in $OUT"
exit "$FAILED"
