# shellcheck shell=bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Builds the appliance's image. Sourced after common.sh.

# `build_image PROGRAMS OUT [options of mt-image build...]`: from the programs in the folder PROGRAMS. What was fetched
# and installed once is kept in MT_WORK: only one run at a time uses it.
build_image() {
    with_work_lock image build_image_alone "$@"
}

build_image_alone() {
    local programs=$1 out=$2
    shift 2
    local stripped=$out.programs name
    mkdir -p "$out" "$stripped"
    on_exit rm --recursive --force "$stripped"
    # Without what only a debugger reads: that is most of their size.
    for name in mt-agent mt-installer; do
        strip --strip-debug -o "$stripped/$name" -- "$programs/$name"
    done
    # The disk of the OVA is made by the installer, once it can.
    local kinds=(--iso)
    if "$programs/mt-installer" apply --help 2>/dev/null | grep --quiet -e '--image'; then kinds+=(--ova); fi
    run "$programs/mt-image" build --spec "$MT_ROOT/image/specs/debian.toml" "${kinds[@]}" \
        --agent "$stripped/mt-agent" --installer "$stripped/mt-installer" \
        --work "$MT_WORK/image" --out "$out" "$@"
}
