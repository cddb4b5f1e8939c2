#!/usr/bin/env bash
# Train the demo model on a GPU for at most SECONDS, then pack the run into pieces of at most 16 MiB.
#
#   train_demo.sh OUT [SECONDS] [pretrain's own options, such as --images 1200000]
#
# The same command goes on where OUT's pieces stop: carry them back with the next command. A run
# that is cut off loses what came after its last save (--evaluate-every steps).
set -euo pipefail
out=${1:?usage: train_demo.sh OUT [SECONDS] [options of pretrain]}
seconds=${2:-480}
shift $(($# > 1 ? 2 : 1))
python=${PYTHON:-python3}
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
mkdir -p "$out"

if compgen -G "$out/run-*.tar" >/dev/null; then
  cat "$out"/run-*.tar | tar -xf - -C "$run"
fi
# What compiles for the GPU needs a C compiler; without one the run is slower and the same.
command -v gcc >/dev/null || command -v cc >/dev/null || export TORCHDYNAMO_DISABLE=1

status=0
timeout --kill-after=30 "$seconds" \
  "$python" -m simpleseg_training.pretrain --out "$run" "$@" || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 124 ] || exit "$status"
[ -e "$run/state.pt" ] || { echo "the run was cut off before its first save"; exit 1; }

rm -f "$out"/run-*.tar "$run/state.tmp"
tar -cf - -C "$run" . | split -b 16M -d -a 3 --additional-suffix=.tar - "$out/run-"
cp "$run/log.jsonl" "$out/log.jsonl"
echo "status $status; $(ls "$out"/run-*.tar | wc -l) pieces; $(tail -n 1 "$out/log.jsonl")"
