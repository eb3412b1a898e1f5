# shellcheck shell=bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Checks of the repository's texts, for scripts/test. Each prints what is wrong and answers with its exit code.

# Everything that is, or is about to be, in the repository.
project_files() { git -C "$MT_ROOT" ls-files --cached --others --exclude-standard -z; }

# Look-alike letters hide in what nobody reads: outside of fixtures and corpora every source is ASCII.
check_ascii() {
    ! (cd "$MT_ROOT" && project_files | grep --null-data --invert-match --extended-regexp '/(fixtures|corpus)/' |
        LC_ALL=C xargs --null grep --line-number --binary-files=without-match --perl-regexp '[^\x00-\x7f]')
}

check_top_level() {
    local entry wrong=0
    while read -r entry; do
        case $entry in
        Cargo.toml | Cargo.lock | agent | installer | image | scripts | tests | README.md | .*) ;;
        *)
            echo "unexpected at the top level: $entry"
            wrong=1
            ;;
        esac
    done < <(cd "$MT_ROOT" && project_files | tr '\0' '\n' | cut --delimiter=/ --fields=1 | sort --unique)
    return "$wrong"
}

# Paths of one machine, and code that only says that it is missing. The words are put together here, so that this
# list does not find itself.
check_words() {
    local words=('(^|[^A-Za-z0-9_.])/wo''rk/' '/ho''me/[a-z]+/' 'to''do!\(' 'unimple''mented!\(') pattern
    pattern=$(IFS='|' && echo "${words[*]}")
    ! (cd "$MT_ROOT" && project_files | grep --null-data --invert-match --extended-regexp '/(fixtures|corpus)/|^Cargo\.lock$' |
        xargs --null grep --line-number --extended-regexp --binary-files=without-match "$pattern")
}

check_scripts() {
    local file wrong=0
    while IFS= read -r -d '' file; do
        [[ $(head --bytes 2 "$MT_ROOT/$file") == '#!' || $file == *.sh ]] || continue
        head --lines 1 "$MT_ROOT/$file" | grep --quiet --extended-regexp 'bash' || continue
        bash -n "$MT_ROOT/$file" || wrong=1
        if command -v shellcheck >/dev/null; then shellcheck --severity=warning "$MT_ROOT/$file" || wrong=1; fi
        if [[ $file != *.sh && ! -x $MT_ROOT/$file ]]; then
            echo "$file cannot be executed"
            wrong=1
        fi
    done < <(project_files)
    return "$wrong"
}

# Each unit says how far it is exposed to what it works with, as `systemd-analyze security` measures it from 0 to 10:
# "# Exposure: at most 2.0", or "# Exposure: not confined" where what it starts is somebody else's.
check_units() {
    local file limit wrong=0
    while IFS= read -r -d '' file; do
        limit=$(sed --quiet --regexp-extended 's/^# Exposure: (at most [0-9]+\.[0-9]|not confined).*/\1/p' "$MT_ROOT/$file")
        case $limit in
        "not confined") continue ;;
        "at most "*) limit=${limit#at most } ;;
        *)
            echo "$file does not say how far it may be exposed"
            wrong=1
            continue
            ;;
        esac
        # Its own unit of measure is a tenth; it fails where the exposure is higher.
        if ! systemd-analyze security --offline=true --no-pager --threshold="$((10#${limit/./}))" "$MT_ROOT/$file"; then
            echo "$file is exposed to more than $limit"
            wrong=1
        fi
    done < <(project_files | grep --null-data --extended-regexp '\.service$')
    return "$wrong"
}

# `check_help FOLDER`: the help of every program in it, and of each of its verbs, fits a terminal of 80 columns.
check_help() {
    local program wrong=0
    for program in mt-agent mt-installer mt-image; do
        [[ -x $1/$program ]] || continue
        check_help_of "$1/$program" || wrong=1
    done
    return "$wrong"
}

check_help_of() {
    local text verb wrong=0
    text=$(COLUMNS=80 "$@" --help 2>&1 </dev/null) || {
        echo "$* --help fails"
        return 1
    }
    if awk -v what="$*" 'length > 80 { print what ": " $0; wide = 1 } END { exit !wide }' <<<"$text"; then wrong=1; fi
    while read -r verb; do
        [[ -n $verb && $verb != help ]] || continue
        check_help_of "$@" "$verb" || wrong=1
    done < <(awk '/^Commands:/ { inside = 1; next } /^[^ ]/ { inside = 0 } inside && /^  [a-z]/ { print $1 }' <<<"$text")
    return "$wrong"
}

# Whether a loop device can be attached here; prints why not.
can_attach_loop() {
    local file device
    file=$(mktemp)
    truncate --size 1M "$file"
    if device=$(losetup --find --show "$file" 2>&1); then
        losetup --detach "$device"
        rm --force "$file"
        return 0
    fi
    rm --force "$file"
    echo "loop devices cannot be attached: $device"
    return 1
}
