#!/bin/sh
# Lays out an image's root folder: the binary, the shared libraries it is linked to, a user, the
# folders it expects. Nothing else is in it: no shell, no package manager.
#
#   docker/rootfs.sh BINARY ROOT
set -eu

binary=$1
root=$2

install -D -m 0555 "$binary" "$root/usr/bin/ferry"
# "libm.so.6 => /lib/libm.so.6 (0x…)", and "/lib64/ld-linux-x86-64.so.2 (0x…)" for the loader.
ldd "$binary" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' |
    while read -r library; do
        install -D -m 0555 "$library" "$root$library"
    done

install -d -m 0755 "$root/etc" "$root/models"
install -d -m 1777 "$root/tmp"
printf 'ferry:x:65532:65532:ferry:/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'ferry:x:65532:\n' >"$root/etc/group"
# Names are looked up in DNS; only `ferry fetch` needs it.
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
