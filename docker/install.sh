#!/bin/sh
# The steps of docker/Dockerfile.curate, on a bare Debian 12: sh install.sh STEP
set -eu

ROOT=/opt/aligngpt
VENV=/opt/venv
LOCK=$ROOT/docker/requirements.lock
UV=0.13.9
# What of the lock only torch's CUDA build needs. faiss-gpu has libraries of its own (…-cu12).
CUDA='^(torch|torchvision|triton|cuda-.*|nvidia-.*)=='

# Debian's Python, what OpenCV and Ray load, and the user that everything runs as (KubeRay's number).
system() {
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    ca-certificates libgl1 libglib2.0-0 procps python3 python3-venv
  rm -rf /var/lib/apt/lists/*
  getent passwd aligngpt >/dev/null || useradd --uid 1000 --create-home --shell /bin/sh aligngpt
  mkdir -p /models /opt/apache/beam
  chown aligngpt /models
}

# All packages in the versions of the lock, each file checked against its hash. By uv, which needs
# a fraction of pip's time.
packages() {
  python3 -m venv $VENV
  $VENV/bin/pip install -q --no-cache-dir "uv==$UV"
  wanted=/tmp/wanted.lock
  if [ "${VARIANT:-cpu}" = cpu ] && [ -n "${TORCH_INDEX:-}" ]; then
    without_cuda <$LOCK >$wanted
    torch=$(grep -oE '^torch(vision)?==[^ ]+' $LOCK)
    # shellcheck disable=SC2086
    install_packages --index-url "$TORCH_INDEX" $torch
  else
    cp $LOCK $wanted
  fi
  install_packages --require-hashes -r $wanted
  rm $wanted
}

# A lock without what only torch's CUDA build needs; an entry is its line and those indented under it.
without_cuda() {
  awk -v cuda="$CUDA" '/^[^ ]/ {keep = !($0 ~ cuda) || $0 ~ /-cu12==/} keep'
}

install_packages() {
  $VENV/bin/uv pip install -q --no-cache --no-deps --link-mode copy --python $VENV/bin/python "$@"
}

# Our own code, which the lock does not hold.
program() {
  install_packages --no-build-isolation $ROOT
}

# The model, if one is to be in the image.
model() {
  [ -n "${MODEL:-}" ] || return 0
  $VENV/bin/python - "$MODEL" <<'PYTHON'
import sys

from scoring.clip.checkpoints import resolve_checkpoint
from scoring.config import ScoreConfig

name, _, pretrained = sys.argv[1].partition(":")
print(resolve_checkpoint(ScoreConfig(model=name, pretrained=pretrained)))
PYTHON
  chown -R aligngpt /models
}

# Whether what was installed can be started, before the image is anybody's. What Python compiles for
# that stays: the user that a job runs as may not write here, and would compile it at each start.
check() {
  cd /
  $VENV/bin/python -m compileall -q $VENV/lib/python3*/site-packages/pipeline \
    $VENV/lib/python3*/site-packages/schemas $VENV/lib/python3*/site-packages/scoring
  $VENV/bin/python -c 'import pipeline.fetch.transform, pipeline.score.transform
from PIL import Image
Image.init()'
  $VENV/bin/python -c 'import apache_beam, cv2, faiss, gcsfs, open_clip, ray, s3fs, simplejpeg, torch'
  $VENV/bin/aligngpt-curate curate --help >/dev/null
  $VENV/bin/ray --version
  test -x /opt/apache/beam/boot
  rm -rf /root/.cache
  du -sxh / 2>/dev/null
}

"$1"
