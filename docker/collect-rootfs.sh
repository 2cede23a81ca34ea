#!/bin/sh
# Lays out the root file system of the image: collect-rootfs.sh BINARY DIRECTORY
# The binary, stripped, as /usr/bin/headwater, and the libraries it loads (ldd's closure with the
# dynamic loader) where the loader looks for them.
set -eu
binary=$1
rootfs=$2

mkdir -p "$rootfs/usr/bin" "$rootfs/etc" "$rootfs/proc" "$rootfs/models"
mkdir -m 1777 "$rootfs/tmp"
strip -o "$rootfs/usr/bin/headwater" "$binary"

# "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)" and "/lib64/ld-linux-x86-64.so.2 (0x...)"
ldd "$binary" | grep -q 'not found' && { ldd "$binary" >&2; exit 1; }
ldd "$binary" | sed -n 's|^[^/]*\(/[^ ]*\) (0x.*|\1|p' | while read -r library; do
  mkdir -p "$rootfs$(dirname "$library")"
  cp --dereference "$library" "$rootfs$library"
done

# Names for the ids that the image runs under.
echo 'root:x:0:0:root:/:/sbin/nologin
nonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin' >"$rootfs/etc/passwd"
echo 'root:x:0:
nonroot:x:65532:' >"$rootfs/etc/group"
