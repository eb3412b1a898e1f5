#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Puts into an initramfs of dracut what the medium and the appliance's disk are found with: the same scripts that
# initramfs-tools takes.

check() { return 0; }

depends() { echo base rootfs-block; }

installkernel() { hostonly='' instmods isofs squashfs overlay loop sr_mod; }

install() {
    inst_multiple blkid cat grep ln losetup mkdir mount sha256sum sleep tr udevadm umount wc
    inst_multiple -o reboot
    inst_simple /usr/share/initramfs-tools/scripts/mtlive
    inst_simple /usr/share/initramfs-tools/scripts/local-block/mt-system
    inst_hook cmdline 30 "$moddir/mt-cmdline.sh"
    inst_hook initqueue 40 "$moddir/mt-system.sh"
    inst_hook mount 50 "$moddir/mt-mount.sh"
}
