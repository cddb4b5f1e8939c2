#!/usr/bin/env bash
# The steps of the GPU benchmark, each a command of at most ten minutes; see README.md here.
#
#   run_all.sh STEP    with STEP one of: checkpoint off structure digits serve train all
#
# Environment: OUT (results; default build/gpu), WORK (the checkpoint; default build/gpu-work),
# DEVICE (cuda|cpu), SCALE (7b|tiny), PYTHON, VLLM_ARGUMENTS (JSON, vLLM's own), TRAIN_SECONDS.
# A rehearsal on a CPU: DEVICE=cpu SCALE=tiny benchmarks/gpu/run_all.sh all
set -euo pipefail
step=${1:?usage: run_all.sh checkpoint|off|structure|digits|serve|train|all}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
scale=${SCALE:-7b}
out=${OUT:-$root/build/gpu}
work=${WORK:-$root/build/gpu-work}
mkdir -p "$out" "$work"
export PYTHONPATH="$root/grammars:$root/clients/python:$root/server:$root/training${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0}

quick=()
train=(--images 1200000 --batch-images 64 --evaluate-every 500)
seconds=${TRAIN_SECONDS:-480}
if [ "$device" = cpu ]; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  quick=(--quick)
  train=(--images 96 --batch-images 8 --evaluate-every 4 --limit 2)
fi
# Every step's last line is its result.
keep() { tee "$out/$1.log" | tail -n 1 >"$out/$1.json" && "$python" -m json.tool "$out/$1.json"; }

replay() {
  "$python" "$here/replay.py" --model "$work/$scale" --mode "$1" --device "$device" --json \
    --vllm "${VLLM_ARGUMENTS:-{\}}" "${quick[@]}" | keep "replay-$1"
}

case $step in
  checkpoint)
    "$python" "$here/make_checkpoint.py" --out "$work/$scale" --scale "$scale" --device "$device" \
      --json | keep checkpoint ;;
  off | structure | digits) replay "$step" ;;
  serve)
    "$python" "$here/serve_demo.py" --device "$device" --log "$out/server.log" --json \
      "${quick[@]}" | keep serve ;;
  train) PYTHON=$python bash "$here/train_demo.sh" "$out/train" "$seconds" "${train[@]}" ;;
  all) for one in checkpoint off structure digits serve train; do "$0" "$one"; done ;;
  *) echo "no step named $step"; exit 2 ;;
esac
