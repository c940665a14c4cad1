#!/usr/bin/env bash
# Everything that docs/performance.md says was measured: runs the benchmarks of the data path on this machine, which should have two idle
# cores, and writes their tables into the page. About 25 minutes; with PROBES=1 also what several clips a video cost, an hour more.
#   pip install decord torchcodec transformers torchvision && apt install ffmpeg    # what it is compared with
#   TUBELET_SHARED=folder with data/   WORK=folder that keeps the videos that it makes   QUICK=1: to see that it works, page not written
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src:${PYTHONPATH:-} OMP_NUM_THREADS=1
shared=${TUBELET_SHARED:-../shared}
work=${WORK:-$(mktemp -d)}
results=benchmarks/results
quick=()
if [ -n "${QUICK:-}" ]; then
  quick=(--quick)
  results=$work/results
fi
mkdir -p "$results"
python3 benchmarks/data.py "${quick[@]}" --shared "$shared" --work "$work" --json "$results/data.json"
python3 benchmarks/embed.py "${quick[@]}" "$shared"/data/long/*.mp4 --json "$results/embed.json"
if [ -n "${PROBES:-}" ]; then
  python3 experiments/clips_per_video.py "$work/clips_per_video" --json "$results/clips_per_video.json"
fi
if [ -z "${QUICK:-}" ]; then
  python3 benchmarks/tables.py
fi
