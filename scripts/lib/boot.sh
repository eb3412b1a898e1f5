# shellcheck shell=bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Starts a disk as a virtual machine, the way ESXi would show it: on a PVSCSI controller, BIOS. Sourced.

# `boot_to_login IMAGE CONSOLE-LOG [SECONDS]`: the image itself is not changed. Emulated, so that it works everywhere.
boot_to_login() {
    local image=$1 console=$2 patience=${3:-300} machine
    : >"$console"
    start qemu-system-x86_64 -accel tcg -machine pc -m 512 -display none -nodefaults -no-reboot \
        -serial "file:$console" -device pvscsi,id=scsi0 \
        -drive "file=$image,if=none,id=disk0,format=raw,snapshot=on" \
        -device scsi-hd,drive=disk0,bus=scsi0.0,vendor=VMware,product="Virtual disk",bootindex=0
    machine=$LAST_PID
    local deadline=$((SECONDS + patience))
    until grep --text --quiet 'login:' "$console"; do
        kill -0 "$machine" 2>/dev/null || die "the virtual machine ended before its login" "see $console"
        ((SECONDS < deadline)) || { tail -n 20 "$console" >&2; die "no login within $patience s" "see $console"; }
        sleep 0.5
    done
    stop "$machine" || true
}
