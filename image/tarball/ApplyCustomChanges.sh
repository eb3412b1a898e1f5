#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# Makes this Debian or EL machine a master target. Run it once, as root, from the unpacked tarball; then restart.
#
# What it does is in "mt-installer custom-change": "./mt-installer custom-change plan" prints it and changes nothing.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$here"

if [ "$(id -u)" != 0 ]; then
    echo "ApplyCustomChanges.sh: needs root, this is user ID $(id -u); nothing was changed" >&2
    echo "hint: run it with sudo" >&2
    exit 5
fi
if ! sha256sum --check --quiet SHA256SUMS >&2; then
    echo "ApplyCustomChanges.sh: $here is not as it was made; nothing was changed" >&2
    echo "hint: unpack the tarball again and compare its SHA-256 with the one that was published" >&2
    exit 5
fi
if ! ./mt-installer --version >/dev/null; then
    echo "ApplyCustomChanges.sh: mt-installer does not start on this system; nothing was changed" >&2
    echo "hint: it needs glibc 2.36, libblkid and libudev or newer, as in Debian 12" >&2
    exit 1
fi
exec ./mt-installer custom-change apply --root / --tarball "$here"
