# shellcheck shell=bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Builds the appliance's image. Sourced after common.sh.

# `build_image PROGRAMS OUT [options of mt-image build...]`: from the programs in the folder PROGRAMS. What was fetched
# and installed once is kept in MT_WORK: only one run at a time uses it. The programs as they went into the image are
# left in the folder IMAGE_PROGRAMS until the end of the script.
build_image() {
    with_work_lock image build_image_alone "$@"
}

build_image_alone() {
    local programs=$1 out=$2 name
    shift 2
    mkdir -p "$out"
    IMAGE_PROGRAMS=$(mktemp --directory)
    on_exit rm --recursive --force "$IMAGE_PROGRAMS"
    # Without what only a debugger reads: that is most of their size.
    for name in mt-agent mt-installer; do
        strip --strip-debug -o "$IMAGE_PROGRAMS/$name" -- "$programs/$name"
    done
    cargo metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu \
        --manifest-path "$MT_ROOT/Cargo.toml" >"$IMAGE_PROGRAMS/crates.json"
    # The disk of the OVA is made by the installer, once it can.
    local kinds=(--iso)
    if "$programs/mt-installer" apply --help 2>/dev/null | grep --quiet -e '--image'; then kinds+=(--ova); fi
    run "$programs/mt-image" build --spec "${MT_SPEC:-$MT_ROOT/image/specs/debian.toml}" "${kinds[@]}" \
        --agent "$IMAGE_PROGRAMS/mt-agent" --installer "$IMAGE_PROGRAMS/mt-installer" \
        --crates "$IMAGE_PROGRAMS/crates.json" --work "$MT_WORK/image" --out "$out" "$@"
}
