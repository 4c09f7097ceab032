#!/usr/bin/env bash
# Everything that wants to be measured on one GPU, in at most twelve minutes on an H100, most valuable first.
#
#   benchmarks/gpu.sh                      # all parts; results in gpu-results/, or in $OUT
#   benchmarks/gpu.sh step epoch           # these parts only
#   benchmarks/gpu.sh --device cpu --toy   # every part at toy size: does the script run?
#
# It needs no network: this checkout, and a Python with torch, torchvision, accelerate, fastcore, filelock, matplotlib, numpy, pandas, Pillow,
# psutil, safetensors, scikit-image, scipy and tqdm. What is missing can be carried as wheels: put them on PYTHONPATH. Where the files have come
# without their history, PRIVREID_COMMIT names the commit.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec python3 benchmarks/gpu.py --out "${OUT:-gpu-results}" "$@"
