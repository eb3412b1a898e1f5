#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# A start from the medium has no root= for dracut: the hook of the mount finds it.
if [ "$(getarg boot=)" = mtlive ]; then
    # shellcheck disable=SC2034 # both are read by the script that takes this one in
    root=mtlive rootok=1
fi
