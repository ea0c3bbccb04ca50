#!/usr/bin/env bash
# Installs what a target of the Makefile needs and this machine lacks, and nothing when it lacks nothing.
#
#   setup.sh [--dry-run] build|demo|test|bench|fuzz
#
# A tool counts as there when its command is found, whoever installed it: only the packages of missing commands are asked of apt.
# apt may add packages, never remove or downgrade one. docs/testing.md says what each tool is for.
set -euo pipefail

PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin:/sbin
dry_run=
if [ "${1:-}" = --dry-run ]; then
    dry_run=1
    shift
fi
purpose=${1:?usage: setup.sh [--dry-run] build|demo|test|bench|fuzz}

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

packages=()
missing=()

# need COMMAND PACKAGE...: asks for the packages when the command is not found.
need() {
    local command=$1
    shift
    if ! command -v "$command" >/dev/null; then
        missing+=("$command")
        packages+=("$@")
    fi
}

# A machine emulator for guests of libvirt. Its packages demand the qemu-system-common of their own release to the letter, so a machine
# whose QEMU is from backports would lose that. Where there is no emulator, one is unpacked in a directory of its own, and
# whatever QEMU is installed stays as it is.
emulator=/usr/local/lib/annals-tests/qemu
emulator_packages=(qemu-system-x86 qemu-system-common qemu-system-data seabios)

need_emulator() {
    if ! command -v qemu-system-x86_64 >/dev/null && [ ! -x $emulator/usr/bin/qemu-system-x86_64 ]; then
        missing+=(qemu-system-x86_64)
        packages+=(emulator)
    fi
}

need_to_build() {
    if ! command -v cc >/dev/null || [ ! -e /usr/include/stdio.h ]; then
        missing+=(cc)
        packages+=(gcc libc6-dev)
    fi
}

need_to_demo() {
    need_to_build
    need fusermount3 fuse3
    need qemu-img qemu
    need qemu-storage-daemon qemu-daemon
    need sfdisk fdisk
    need mkfs.ext4 e2fsprogs
    need debugfs e2fsprogs
    need tar2sqfs squashfs-tools-ng
}

need_to_test() {
    need_to_demo
    need qemu-io qemu
    need qemu-nbd qemu
    need mkfs.xfs xfsprogs
    need mkfs.vfat dosfstools
    need sgdisk gdisk
    # What a guest's disk may hold, for the names that `show` gives it.
    need mkfs.btrfs btrfs-progs
    need mkfs.exfat exfatprogs
    need mkntfs ntfs-3g
    need cryptsetup cryptsetup-bin
    need mksquashfs squashfs-tools
    need setfacl acl
    need setcap libcap2-bin
    need systemctl systemd
    need xorriso xorriso
    need rsync rsync
    need nbdkit nbdkit
    need bsdtar libarchive-tools
    need python3 python3
    need nbdinfo libnbd-bin
    need openssl openssl
    need libvirtd libvirt-daemon libvirt-daemon-driver-qemu
    need virsh libvirt-clients
    need_emulator
    need shellcheck shellcheck
    need git git
}

need_to_bench() {
    need_to_demo
    need qemu-io qemu
    need qemu-nbd qemu
    need fio fio
    need nbdkit nbdkit
    need nbdcopy libnbd-bin
    need mksquashfs squashfs-tools
    need squashfuse_ll squashfuse
    need mkfs.btrfs btrfs-progs
}

# need_cargo NAME VERSION: a cargo subcommand; the version is the one that was tried, any other that is there already will do.
cargo_tools=()
need_cargo() {
    command -v "cargo-$1" >/dev/null || cargo_tools+=("cargo-$1@$2")
}

case $purpose in
    build) need_to_build ;;
    demo) need_to_demo ;;
    bench) need_to_bench ;;
    test)
        need_to_test
        need_cargo nextest 0.9.143
        need_cargo deny 0.20.2
        ;;
    fuzz)
        need mksquashfs squashfs-tools
        need_to_build
        need g++ g++
        need_cargo fuzz 0.13.2
        ;;
    *) die "unknown purpose '$purpose': build, demo, test, bench or fuzz" ;;
esac

command -v cargo >/dev/null || die "cargo is not found: install Rust first (https://rustup.rs), at least the version in Cargo.toml"

# qemu_packages qemu|qemu-daemon...: the packages that hold QEMU's tools and its storage daemon, of the QEMU that is there.
#
# The daemon moved from qemu-system-common to qemu-utils in 8.0, and the newer qemu-utils breaks the older qemu-system-common:
# on a machine with QEMU from backports, `apt-get install qemu-system-common` would remove qemu-utils.
# So the version follows the QEMU that is installed, and only where there is none the release's own.
qemu_packages() {
    local version name
    version=$(dpkg-query -W -f '${source:Package} ${db:Status-Status} ${Version}\n' qemu-utils 'qemu-system-*' 2>/dev/null |
        awk '$1 == "qemu" && $2 == "installed" { print $3; exit }')
    [ -n "$version" ] || version=$(apt-cache policy qemu-utils | awk '$1 == "Candidate:" { print $2 }')
    for name in "$@"; do
        if [ "$name" = qemu-daemon ] && dpkg --compare-versions "$version" lt '1:8.0~'; then
            name='qemu-system-common'
        else
            name='qemu-utils'
        fi
        # The archive may hold a newer build of the same release only; then apt's own choice fits as well.
        if apt-cache madison "$name" | awk '{ print $3 }' | grep -qxF "$version"; then
            name=$name=$version
        fi
        echo "$name"
    done | sort -u
}

install_packages() {
    say "not found: ${missing[*]}"
    command -v apt-get >/dev/null || die "this is no Debian: install these commands by the means of your system"

    local as_root=()
    if [ "$(id -u)" -ne 0 ] && [ -z "$dry_run" ]; then
        sudo -n true 2>/dev/null || die "run this as root, or: sudo apt-get install --no-install-recommends ${packages[*]}"
        as_root=(sudo)
    fi
    if [ -z "$dry_run" ]; then
        "${as_root[@]}" apt-get update -q || say "apt-get update failed: trying with the lists that are there"
    fi

    local wanted=() qemu=() name unpack=
    for name in "${packages[@]}"; do
        case $name in
            qemu | qemu-daemon) qemu+=("$name") ;;
            emulator)
                unpack=1
                mapfile -t -O "${#wanted[@]}" wanted < <(emulator_libraries)
                ;;
            *) wanted+=("$name") ;;
        esac
    done
    if [ ${#qemu[@]} -gt 0 ]; then
        local found
        found=$(qemu_packages "${qemu[@]}")
        mapfile -t -O "${#wanted[@]}" wanted <<<"$found"
    fi

    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends --no-remove)
    if [ -n "$dry_run" ]; then
        "${apt[@]}" --simulate "${wanted[@]}"
    else
        "${as_root[@]}" "${apt[@]}" "${wanted[@]}"
    fi
    [ -z "$unpack" ] || unpack_emulator "${as_root[@]}"
}

# The libraries of the emulator that are not there yet.
emulator_libraries() {
    local name
    for name in $(apt-cache depends qemu-system-x86 | awk '$1 == "Depends:" && $2 ~ /^lib/ { print $2 }'); do
        dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -q '^installed' || echo "$name"
    done
}

# unpack_emulator [sudo]: unpacks the release's own packages of the emulator, all of one version.
unpack_emulator() {
    say "unpacking ${emulator_packages[*]} into $emulator"
    [ -z "$dry_run" ] || return 0
    local scratch version name
    scratch=$(mktemp -d)
    version=$(apt-cache policy qemu-system-x86 | awk '$1 == "Candidate:" { print $2 }')
    for name in "${emulator_packages[@]}"; do
        case $name in
            # Built once for all architectures, and so without the number of the build.
            seabios | qemu-system-data) ;;
            *) name=$name=$version ;;
        esac
        (cd "$scratch" && apt-get download -q -o APT::Sandbox::User=root "$name" 2>&1) || die "cannot download $name"
    done
    for name in "$scratch"/*.deb; do
        dpkg-deb --extract "$name" "$scratch/unpacked"
    done
    "$@" mkdir -p "$(dirname $emulator)"
    "$@" rm -rf $emulator $emulator.new
    "$@" cp -r "$scratch/unpacked" $emulator.new
    "$@" chmod -R a+rX $emulator.new
    "$@" mv $emulator.new $emulator
    rm -rf "$scratch"
}

if [ ${#packages[@]} -gt 0 ]; then
    install_packages
fi

for tool in "${cargo_tools[@]}"; do
    say "building $tool from crates.io, once"
    if [ -z "$dry_run" ]; then
        # As small a build as does the job: a tool that runs for seconds need not be compiled for minutes.
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            CARGO_PROFILE_RELEASE_DEBUG=false cargo install --locked --quiet "$tool"
    fi
done

if [ "$purpose" != build ] && [ "$purpose" != fuzz ] && [ ! -c /dev/fuse ]; then
    say "/dev/fuse is not there: in a container, start it with --device /dev/fuse and CAP_SYS_ADMIN"
fi
