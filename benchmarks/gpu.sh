#!/usr/bin/env bash
# What to run on a machine with a GPU, most valuable first: tests, goldens on the device, speed of a step, how data reaches it, then the
# study of docs/results.md at a GPU's size, and the experiment that has waited longest (maskings on JHMDB). Both go on at the next call.
#   OUT=folder for the outputs, TUBELET_SHARED=folder with goldens/ and data/
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-gpu-results}
mkdir -p "$OUT"
export PYTHONPATH=src:${PYTHONPATH:-}
python3 -m pytest -q tests/parity tests/fit tests/nn tests/train 2>&1 | tee "$OUT/tests.txt"
shared=${TUBELET_SHARED:-../shared}
python3 tests/parity/check.py --device cuda "$shared"/goldens/{videomae,tgm,mgm,mgmae,adamae}_a.safetensors 2>&1 | tee "$OUT/goldens.txt"
for size in small base; do
  python3 benchmarks/step.py --size $size --batch 64 --precision bf16 | tee "$OUT/step-$size.json"
  python3 benchmarks/step.py --size $size --batch 64 --precision bf16 --compile | tee "$OUT/step-$size-compiled.json"
done
python3 benchmarks/cache.py --device cuda | tee "$OUT/cache.json"
if [ -d "$shared/data/long" ]; then
  python3 -m tubelet bench data "$shared/data/long" --recipe one-gpu --json "$OUT/pace.json" --overwrite
  if python3 -c "import transformers" 2>/dev/null; then
    python3 benchmarks/embed.py "$shared"/data/long/*.mp4 --device cuda --json "$OUT/embed.json"
  fi
fi
jhmdb=$shared/data/actions/jhmdb/split.csv
if [ -f "$jhmdb" ]; then
  export TUBELET_STUDY=${TUBELET_STUDY:-$OUT/study}
  timeout 540 python3 experiments/run.py real_video_gpu | tee "$OUT/real_video.txt"
  timeout 540 python3 experiments/run.py jhmdb_maskings | tee "$OUT/jhmdb_maskings.txt"
  cp -r experiments/results "$OUT/results"
fi
