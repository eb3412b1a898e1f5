# shellcheck shell=bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# What every script here shares: messages, tidy endings, loop devices. Sourced, never run.
#
# A script that changes the machine says so with `on_exit` at once after it did: the undo list runs backwards on
# every way out, Ctrl-C, kill and hang-up included. Long programs are started with `run`, since bash serves a
# trap only after the foreground program has ended, and a `kill` would otherwise wait for a whole build.

set -euo pipefail

MT_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Things worth keeping between runs (disk images, guest kernels, tools). Never inside the repository.
MT_WORK=${MT_WORK:-/var/tmp/master-target}
export MT_ROOT MT_WORK

UNDO=()
GROUPS_RUNNING=()

say() { printf '%s\n' "$*" >&2; }
# A heading with the seconds since the script began.
step() { printf '\n[%4ds] %s\n' "$SECONDS" "$*" >&2; }
die() {
    local code=1
    if [[ $1 =~ ^[0-9]+$ ]]; then code=$1; shift; fi
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    shift
    local hint
    for hint in "$@"; do printf '  hint: %s\n' "$hint" >&2; done
    exit "$code"
}

# The comment at the head of a script is its help.
usage() { sed -n '3,/^[^#]/s/^# \{0,1\}//p' "$0"; }

need_root() {
    [[ $(id -u) == 0 ]] || die 2 "$1 needs root: it attaches loop devices and mounts file systems" "run it with sudo, or as root"
}

# Adds a command, words as given, to what is done at the end, last one first.
on_exit() { UNDO+=("$(printf '%q ' "$@")"); }

# Takes a command off that list, since it was done already: a loop device may belong to somebody else by then.
done_already() {
    local words kept=() entry
    words=$(printf '%q ' "$@")
    for entry in "${UNDO[@]}"; do [[ $entry == "$words" ]] || kept+=("$entry"); done
    UNDO=("${kept[@]}")
}

finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM HUP
    set +e
    local group index waited
    for group in "${GROUPS_RUNNING[@]}"; do kill -TERM -- "-$group" 2>/dev/null; done
    for group in "${GROUPS_RUNNING[@]}"; do
        waited=0
        while kill -0 -- "-$group" 2>/dev/null && ((waited < 50)); do sleep 0.1; waited=$((waited + 1)); done
        kill -KILL -- "-$group" 2>/dev/null
        # Reaped here, so that the loop devices below have nobody left who holds them.
        wait "$group" 2>/dev/null
    done
    for ((index = ${#UNDO[@]} - 1; index >= 0; index--)); do eval "${UNDO[index]}" 2>/dev/null; done
    exit "$code"
}

# Called once by each script after its options were read.
tidy_on_every_way_out() {
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
}

# Starts a program in its own process group and leaves its number in LAST_PID; `finish` ends the whole group.
start() {
    set -m
    "$@" </dev/null &
    LAST_PID=$!
    set +m
    GROUPS_RUNNING+=("$LAST_PID")
}

forget_group() {
    local kept=() group
    for group in "${GROUPS_RUNNING[@]}"; do [[ $group == "$1" ]] || kept+=("$group"); done
    GROUPS_RUNNING=("${kept[@]}")
}

# Runs a program to its end, interruptible.
run() {
    local code=0 pid
    start "$@"
    pid=$LAST_PID
    wait "$pid" || code=$?
    forget_group "$pid"
    return "$code"
}

# Ends a program that was started with `start`, orderly; answers its exit code.
stop() {
    local pid=$1 code=0
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || code=$?
    forget_group "$pid"
    return "$code"
}

# Waits until a command succeeds: `wait_until SECONDS WHAT COMMAND...`.
wait_until() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < deadline)) || die "waited in vain for $what"
        sleep 0.1
    done
}

# Sets LOOP to a new loop device on a file: `attach_loop FILE [losetup options]`. Detached at the end.
attach_loop() {
    local file=$1
    shift
    LOOP=$(losetup --find --show "$@" -- "$file") || die "cannot attach $file to a loop device" "see losetup --list"
    on_exit losetup --detach "$LOOP"
}

detach_loop() {
    losetup --detach "$1"
    done_already losetup --detach "$1"
}

# `partition_range IMAGE NUMBER` prints start and size of a partition in bytes, from the partition table itself:
# not every kernel scans the partitions of a loop device.
partition_range() {
    sfdisk --json -- "$1" | python3 -c '
import json, sys
table = json.load(sys.stdin)["partitiontable"]
part = table["partitions"][int(sys.argv[1]) - 1]
print(part["start"] * 512, part["size"] * 512)' "$2"
}

# Only one run at a time makes what is kept in MT_WORK; the others wait and find it made.
with_work_lock() {
    mkdir -p "$MT_WORK"
    local fd code=0
    exec {fd}>"$MT_WORK/$1.lock"
    shift
    run flock --exclusive "$fd"
    "$@" || code=$?
    exec {fd}>&-
    return "$code"
}

# Bytes for people, binary units.
human() { numfmt --to=iec-i --suffix=B --format=%.1f "$1"; }
