#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The root file system of a start from the medium, by the script that initramfs-tools takes.
if [ "$(getarg boot=)" = mtlive ] && ! ismounted "$NEWROOT"; then
    # What that script expects of initramfs-tools.
    # shellcheck disable=SC2034
    rootmnt=$NEWROOT
    panic() { die "$@"; }
    busybox() { "$@"; }
    # shellcheck disable=SC1091
    . /usr/share/initramfs-tools/scripts/mtlive
    mountroot
fi
