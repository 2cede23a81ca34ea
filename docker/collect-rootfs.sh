#!/bin/sh
# Lays out the root file system of the image: collect-rootfs.sh BINARY DIRECTORY [LIBRARY...]
# The binary, stripped, as /usr/bin/headwater, and the libraries it loads (ldd's closure with the
# dynamic loader) where the loader looks for them; LIBRARY: what it opens at run time.
set -eu
binary=$1
rootfs=$2
shift 2

mkdir -p "$rootfs/usr/bin" "$rootfs/usr/lib" "$rootfs/etc" "$rootfs/proc" "$rootfs/models"
mkdir -m 1777 "$rootfs/tmp"
strip -o "$rootfs/usr/bin/headwater" "$binary"

# "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)" and "/lib64/ld-linux-x86-64.so.2 (0x...)"
for opened in "$@"; do cp --dereference "$opened" "$rootfs/usr/lib/"; done
for file in "$binary" "$@"; do
  ldd "$file" | grep -q 'not found' && { ldd "$file" >&2; exit 1; }
  ldd "$file" | sed -n 's|^[^/]*\(/[^ ]*\) (0x.*|\1|p' | while read -r library; do
    [ -e "$rootfs/usr/lib/$(basename "$library")" ] && continue
    mkdir -p "$rootfs$(dirname "$library")"
    cp --dereference "$library" "$rootfs$library"
  done
done

# Names for the ids that the image runs under.
echo 'root:x:0:0:root:/:/sbin/nologin
nonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin' >"$rootfs/etc/passwd"
echo 'root:x:0:
nonroot:x:65532:' >"$rootfs/etc/group"
