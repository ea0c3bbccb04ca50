#!/usr/bin/env bash
# A small store of one guest's real disk, from making it to getting a lost file back. `make demo` runs it.
#
# Everything happens in a directory of its own under TMPDIR; mounts, loop devices and files are gone when it ends, however it ends.
# ANNALS names another program than the release build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8 TZ=UTC
annals=$(realpath "${ANNALS:-target/release/annals}")

bold='' dim='' green='' red='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/annals-demo.XXXXXX")
cd "$work"
store=store mnt=mnt
loop=

cleanup() {
    local status=$? mounted
    set +e
    [ -z "$loop" ] || losetup --detach "$loop"
    for mounted in day3 day4; do
        if mountpoint -q "$mounted"; then umount "$mounted"; fi
    done
    if mountpoint -q "$mnt"; then "$annals" umount "$mnt" || umount --lazy "$mnt"; fi
    cd /
    rm -rf --one-file-system "$work"
    if [ "$status" -eq 0 ]; then
        printf '\n%sCleaned up: nothing is left of it.%s\n' "$dim" "$plain"
    else
        printf '\n%sThe demo failed; what it had made is removed.%s\n' "$red$bold" "$plain" >&2
    fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

heading() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
good() { printf '%s%s%s\n' "$green" "$*" "$plain"; }
fail() {
    printf '%s%s%s\n' "$red$bold" "$*" "$plain" >&2
    exit 1
}

# run COMMAND…: shows the command as one would type it, then what it prints.
run() {
    local word shown=
    for word in "$@"; do
        case $word in
            "$annals") word=annals ;;
            *' '*) word="'$word'" ;;
        esac
        shown+=" $word"
    done
    printf '%s$%s%s\n' "$green" "$shown" "$plain"
    "$@" 2>&1 | sed 's/^/    /'
}

# The same for a line that the shell has to expand.
run_line() {
    printf '%s$ %s%s\n' "$green" "$1" "$plain"
    bash -c "$1" | sed 's/^/    /'
}

backups=(2024-11-07T16-51-22Z 2024-11-08T16-51-20Z 2024-11-09T16-51-21Z 2024-11-10T16-51-24Z)

heading '1. A guest: 256 MiB of disk, a GPT partition table, an ext4 file system'
disk=guest-disk.raw
truncate -s 256M "$disk"
sfdisk --quiet "$disk" <<'TABLE'
label: gpt
start=2048, size=32768, type=uefi, name="EFI system"
start=34816, size=487424, type=linux, name="root"
TABLE
run sfdisk --list "$disk"
root_at=$((34816 * 512))

mkdir -p root/etc root/home/alice root/var/lib
echo web01 >root/etc/hostname
head -c 24M /dev/urandom >root/var/lib/database
write_report() {
    printf 'Quarterly report, as of day %s\n' "$1" >report.txt
    seq -f "line %.0f of day $1" 1000 >>report.txt
}
write_report 1
cp report.txt root/home/alice/report.txt
mkfs.ext4 -q -E "offset=$root_at" -L root -d root "$disk" "$((487424 / 2))k"

# in_guest COMMAND…: what the guest itself would do to its files, done by debugfs, which needs no root.
in_guest() { printf '%s\n' "$@" | debugfs -w -f - "$disk?offset=$root_at" >/dev/null 2>&1; }

heading '2. Four days of backups: one full, then three incremental layers, each on top of the day before'
run "$annals" init --store "$store"
previous=
day=0
for name in "${backups[@]}"; do
    day=$((day + 1))
    dir=$store/100/qemu-$name
    mkdir -p "$dir"
    printf 'name: web01\nmemory: 2048\nscsi0: local:vm-100-disk-0,size=256M\n' >"$dir/guest.conf"
    layer=$dir/drive-scsi0.qcow2
    if [ -z "$previous" ]; then
        qemu-img convert -q -O qcow2 "$disk" "$layer"
    else
        write_report "$day"
        case $day in
            4) in_guest 'rm /home/alice/report.txt' ;;
            *) in_guest 'rm /home/alice/report.txt' "write report.txt /home/alice/report.txt" ;;
        esac
        # An overlay that holds just the clusters in which today's disk differs from yesterday's image.
        qemu-img create -q -f qcow2 -b "$work/$disk" -F raw "$layer"
        qemu-img rebase -q -f qcow2 -b "../$previous/drive-scsi0.qcow2" -F qcow2 "$layer"
    fi
    previous=qemu-$name
done
note 'Every day alice rewrote her report. On the fourth day somebody deleted it.'
run_line 'du -h store/100/*/*.qcow2'
run "$annals" --store "$store" list 100
run "$annals" --store "$store" show 100@latest

heading '3. The store as a directory tree'
mkdir "$mnt"
run "$annals" --store "$store" mount --log-file annals.log "$mnt"
run find "$mnt" -maxdepth 2
run ls -lsh "$mnt/100/latest/"
note 'drive-scsi0.raw is the whole disk of that day, however many layers it lies in; the part files are its partitions.'

third=$mnt/100/${backups[2]} fourth=$mnt/100/latest
heading '4. The lost file, out of the third day'
if [ "$(id -u)" -eq 0 ]; then
    loop=$(losetup --find --show --read-only --partscan "$fourth/drive-scsi0.raw")
    if [ -e "${loop}p2" ]; then
        note "The raw file is a disk like any other: losetup --partscan shows its partitions as ${loop}p1 and ${loop}p2."
    else
        note "The raw file is a disk like any other, attached as $loop. This kernel reads no partition tables, so --partscan"
        note 'shows no partitions on it; the part files do not need it to.'
    fi
    losetup --detach "$loop"
    loop=
    mkdir day3 day4
    run mount -o ro,loop "$fourth/drive-scsi0.part2.raw" day4
    run ls -l day4/home/alice
    run mount -o ro,loop "$third/drive-scsi0.part2.raw" day3
    run ls -l day3/home/alice
    run cp day3/home/alice/report.txt report-back.txt
    database=day4/var/lib/database
else
    note 'Loop devices need root; without it, debugfs reads the partition files just as well.'
    run debugfs -R 'ls -l /home/alice' "$fourth/drive-scsi0.part2.raw"
    run debugfs -R 'ls -l /home/alice' "$third/drive-scsi0.part2.raw"
    run debugfs -R "dump /home/alice/report.txt report-back.txt" "$third/drive-scsi0.part2.raw"
    debugfs -R "dump /var/lib/database database" "$fourth/drive-scsi0.part2.raw" 2>/dev/null
    database=database
fi

heading '5. Is it the right one?'
write_report 3
run head -n 1 report-back.txt
cmp report.txt report-back.txt || fail 'The report is not that of the third day.'
good 'The report is byte for byte what alice had on the third day.'
cmp root/var/lib/database "$database" || fail 'The database is not what it was.'
good 'The database, which nobody touched, reads the same on the fourth day through all four layers.'
qemu-img compare -q -f raw -F raw "$disk" "$fourth/drive-scsi0.raw" || fail 'The disk is not what the guest has.'
good "The mounted disk of the fourth day is identical to the guest's."

if [ "$(id -u)" -eq 0 ]; then
    umount day4 day3
fi
run "$annals" umount "$mnt"
