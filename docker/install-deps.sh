#!/bin/sh
# Installs Headwater's dependencies from Debian 12 packages; a fraction of a second when none is
# missing. The fresh machine, CI and the images all use this script.
#
#   sh docker/install-deps.sh            what building and the quickstart need
#   sh docker/install-deps.sh --tests    also Python (end-to-end tests, lint) and clang (fuzzing)
#   sh docker/install-deps.sh --cuda     also pip (docker/install-cuda.sh)
#   sh docker/install-deps.sh --image    also debootstrap and buildah (tests/e2e/test_image.sh)
set -eu

packages="
  g++ cmake ninja-build ccache pkg-config
  ca-certificates curl unzip
  libboost1.81-dev libssl-dev
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  nlohmann-json3-dev libyaml-cpp-dev libcli11-dev libspdlog-dev
  libhwy-dev libpcre2-dev libutf8proc-dev prometheus-cpp-dev
  catch2 libbenchmark-dev"

for option in "$@"; do
  case $option in
    --tests) packages="$packages python3 python3-venv clang libclang-rt-14-dev clang-format" ;;
    --cuda) packages="$packages python3-pip" ;;
    --image) packages="$packages debootstrap buildah" ;;
    *)
      sed -n '2,8s/^# \{0,1\}//p' "$0"
      [ "$option" = --help ] && exit 0
      echo "install-deps: unknown option '$option'" >&2
      exit 2
      ;;
  esac
done

fail() {
  echo "install-deps: $*" >&2
  exit 1
}

command -v apt-get >/dev/null || fail \
  "this system has no apt. Headwater is built on Debian 12; elsewhere install the equivalents of:
$packages"

installed=$(dpkg-query -W -f '${db:Status-Abbrev}:${Package}\n' 2>/dev/null | sed -n 's/^ii *://p')
missing=
for package in $packages; do
  echo "$installed" | grep -qxF "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || fail \
    "these packages are missing, and this user is not root and has no sudo. As root, run:
  apt-get update && apt-get install --no-install-recommends$missing"
  as_root=sudo
fi

echo "install-deps: installing$missing"
install() {
  # shellcheck disable=SC2086  # one word per package
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 $missing
}
# A stale or empty package index is the usual reason for a failure: refresh it and try once more.
if [ -z "$(find /var/lib/apt/lists -name '*_Packages*' 2>/dev/null | head -n 1)" ] || ! install; then
  $as_root apt-get update -q -o Acquire::Retries=3 ||
    echo "install-deps: apt-get update reported errors; trying to install all the same" >&2
  install || fail "apt-get could not install:$missing
  Check the network and /etc/apt/sources.list (Debian 12 'bookworm', component main), then run this again."
fi
