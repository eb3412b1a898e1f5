#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Finds the disk that the appliance lives on, by the script that initramfs-tools takes. Called until it is found.
if [ "$(getarg root=)" = /dev/mt-system/root ]; then
    sh /usr/share/initramfs-tools/scripts/local-block/mt-system /dev/mt-system/root
fi
