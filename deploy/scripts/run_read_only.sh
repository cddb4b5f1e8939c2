#!/usr/bin/env bash
# Runs an unpacked image as its configuration says, in namespaces of its own: its user, a root file
# system that is read only, a tmpfs on /tmp, no network but its own. It must become healthy, answer,
# write nothing, and end in good order. Started by build_without_docker.sh.
set -euo pipefail
root=$1 image=$2

field() { python3 -c 'import json, sys
value = json.load(open(sys.argv[1]))["Docker"]["config"]
for name in sys.argv[2:]: value = value[name]
print(value if isinstance(value, str) else "\n".join(value))' "$image" "$@"; }
mapfile -t environment < <(field Env)
mapfile -t entrypoint < <(field Entrypoint)
mapfile -t command < <(field Cmd)
mapfile -t health < <(field Healthcheck Test)
inside=(chroot --userspec="$(field User)" "$root" env -i --chdir="$(field WorkingDir)" "${environment[@]}")

ip link set lo up
mount --make-rprivate /
mount --bind "$root" "$root"
mount --options remount,bind,ro "$root"
mount --types tmpfs tmpfs "$root/tmp"
mount --types proc proc "$root/proc"
mount --rbind /dev "$root/dev"

"${inside[@]}" "${entrypoint[@]}" "${command[@]}" >"$root/tmp/log" 2>&1 &
server=$!
for _ in $(seq 120); do
  ! "${inside[@]}" "${health[@]:1}" 2>/dev/null || break
  kill -0 "$server" || { cat "$root/tmp/log"; exit 1; }
  sleep 1
done
"${inside[@]}" "${health[@]:1}"
echo "healthy"
"${inside[@]}" sh -c 'simpleseg segment --url http://127.0.0.1:8000 "$(dirname "$(python -c "import simpleseg; print(simpleseg.__file__)")")/bench/scenes/scene-04.png" "the hexagon"'
if "${inside[@]}" sh -c 'touch /opt/venv/written || touch /etc/written' 2>/dev/null; then
  echo "the root file system can be written" && exit 1
fi
"${inside[@]}" id
kill -TERM "$server"
wait "$server"
echo "ended with status 0"
