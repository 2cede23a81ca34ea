#!/bin/sh
# Builds docker/Dockerfile where no Docker engine runs, starts the server from the image's root file
# system as the image's user, and asks it a question. With the argument `cuda`: docker/Dockerfile.cuda,
# for one architecture; its server answers on the CPU, as the test's root has no GPU. Needs root, the
# network, debootstrap and buildah (docker/install-deps.sh --image); exits 77 (skipped) without. The
# base system is kept between runs in build/image.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
work=$root/build/image
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
file=docker/Dockerfile max_mb=100 preset=
if [ "${1:-}" = cuda ]; then file=docker/Dockerfile.cuda max_mb=1000 preset=release; fi
port=${PORT:-18080}

skip() {
  echo "test_image: skipped: $*"
  exit 77
}
fail() {
  echo "test_image: $*" >&2
  exit 1
}

[ "$(id -u)" -eq 0 ] || skip "not root"
for tool in buildah debootstrap; do
  command -v $tool >/dev/null || skip "$tool is missing (docker/install-deps.sh --image)"
done
model=$(sh docker/fetch-model.sh) || skip "no model"

mkdir -p "$work"
buildah() {
  command buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"
}

container=
server=
cleanup() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$work/rootfs"
  [ -z "$container" ] || buildah rm "$container" >/dev/null
}
trap cleanup EXIT
trap 'exit 1' INT TERM

if ! buildah inspect --type image headwater-base >/dev/null 2>&1; then
  echo "test_image: making a Debian 12 base"
  rm -rf "$work/base"
  debootstrap --variant=minbase bookworm "$work/base" "$mirror" >"$work/debootstrap.log" 2>&1 || {
    tail -n 3 "$work/debootstrap.log"
    skip "no Debian base from $mirror (another one: DEBIAN_MIRROR=URL)"
  }
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$work/base" / >/dev/null
  buildah commit --quiet "$container" headwater-base >/dev/null
  buildah rm "$container" >/dev/null
  container=
  rm -rf "$work/base"
fi

# The compiler cache, where there is one, serves this build too.
cache=$(ccache --get-config cache_dir 2>/dev/null || true)
buildah bud --isolation chroot --layers --build-arg BASE=localhost/headwater-base \
  ${preset:+--build-arg PRESET=$preset} ${cache:+--volume "$cache:/root/.cache/ccache"} \
  --file "$file" --tag headwater .

container=$(buildah from headwater)
mount=$(buildah mount "$container")
size_kb=$(du -sk "$mount" | cut -f 1)
echo "test_image: the image holds $((size_kb / 1024)) MB in $(find "$mount" -type f | wc -l) files"
[ "$size_kb" -lt $((max_mb * 1024)) ] || fail "the image is not under $max_mb MB"
config=$(buildah inspect --type image headwater)
echo "$config" | grep -q '"User": "65532:65532"' || fail "the image does not run as 65532:65532"
echo "$config" | tr -d ' \n' | grep -q '"Entrypoint":\["/usr/bin/headwater","serve"\]' ||
  fail "the image's entrypoint is not the server"

# A copy, so that the model can be put into it.
rm -rf "$work/rootfs"
cp -a "$mount" "$work/rootfs"
cp "$model" "$work/rootfs/models/"
HEADWATER_HOST=127.0.0.1 unshare --fork --pid --mount --mount-proc=/proc --kill-child \
  --root="$work/rootfs" --wd=/ --setgid 65532 --setuid 65532 \
  /usr/bin/headwater serve --model "/models/$(basename "$model")" --port "$port" --grpc-port 0 \
  >"$work/server.log" 2>&1 &
server=$!
url=http://127.0.0.1:$port
waited=0
until curl --silent --fail --output /dev/null "$url/readyz"; do
  kill -0 $server 2>/dev/null || { cat "$work/server.log"; fail "the server ended"; }
  [ $waited -lt 60 ] || { cat "$work/server.log"; fail "the server is not ready"; }
  sleep 1
  waited=$((waited + 1))
done
# unshare runs as root, its child must not.
pid=$(tr -d ' ' <"/proc/$server/task/$server/children")
grep -q '^Uid:.65532.65532.65532.65532' "/proc/$pid/status" || fail "the server does not run as 65532"

reply=$(curl --silent --show-error --fail-with-body "$url/v1/chat/completions" \
  -H 'Content-Type: application/json' \
  -d '{"messages":[{"role":"user","content":"Write one sentence about the sea."}],"max_tokens":40,"temperature":0}') ||
  fail "no answer: $reply"
echo "$reply" | grep -q '"content":"[^"]*[a-z]' || fail "the reply has no text: $reply"
echo "test_image: $reply"

kill -TERM "$pid"
wait $server || fail "the server did not stop cleanly"
server=
