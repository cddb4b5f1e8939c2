#!/usr/bin/env bash
# Builds the image for a CPU with buildah, runs it as an orchestrator would, and prints the sizes of
# its layers: `make image-check`. For root on a Debian with buildah and debootstrap; no engine runs.
#
# No registry of images is asked: in place of the official Python image there is a Debian made here,
# with Debian's Python 3.11, so that the first layer is another than the published image's. Every step
# of the Dockerfile runs as it stands.
#
#   TORCH_INDEX  an index with CPU builds of torch, in place of the Dockerfile's
#   VOLUMES      mounts for its steps, FROM:TO:ro, separated by spaces: a pip.conf, certificates
#   SBOM         where to put the bill of materials
set -euo pipefail
cd "$(dirname "$0")/../.."
scripts=$PWD/deploy/scripts

work=$(mktemp -d /var/tmp/simpleseg-image.XXXXXX)
export BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$work/storage" --runroot "$work/run" "$@"; }
finish() {
  buildah rm --all >/dev/null 2>&1 || true
  buildah rmi --all --force >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT

debootstrap --variant=minbase --include=ca-certificates,python3-pip,python3-venv \
  bookworm "$work/debian" >"$work/log" || { tail -20 "$work/log"; exit 1; }
rm -rf "$work"/debian/var/{cache/apt,lib/apt/lists}/* "$work/debian/usr/lib/python3.11/EXTERNALLY-MANAGED"
ln -s /usr/bin/python3 "$work/debian/usr/local/bin/python"
python=$(buildah from scratch)
buildah add --quiet "$python" "$work/debian" / >/dev/null
buildah commit --quiet --rm "$python" localhost/python >/dev/null
rm -rf "$work/debian"

options=(--layers --format docker --build-arg PYTHON_IMAGE=localhost/python)
[ -z "${TORCH_INDEX:-}" ] || options+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
for volume in ${VOLUMES:-}; do options+=(--volume "$volume"); done
buildah build "${options[@]}" --target cpu --tag simpleseg-server:cpu . >"$work/log" 2>&1 \
  || { tail -40 "$work/log"; exit 1; }

buildah push --quiet simpleseg-server:cpu "oci:$work/oci"
python3 "$scripts/layers.py" "$work/oci"
rm -rf "$work/oci"

container=$(buildah from simpleseg-server:cpu)
root=$(buildah mount "$container")
cp "$root/usr/share/doc/simpleseg-server/sbom.cdx.json" "${SBOM:-$work/sbom.cdx.json}"
python3 "$scripts/layers.py" --bill "${SBOM:-$work/sbom.cdx.json}"
buildah inspect --type image simpleseg-server:cpu >"$work/image.json"
unshare --mount --net --pid --fork "$scripts/run_read_only.sh" "$root" "$work/image.json"
