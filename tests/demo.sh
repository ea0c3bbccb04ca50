#!/usr/bin/env bash
# A guest's live disk and a container, backed up into a small store, from making them to getting a lost file back. `make demo` runs it.
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
daemon=

cleanup() {
    local status=$? mounted
    set +e
    [ -z "$loop" ] || losetup --detach "$loop"
    for mounted in third fourth; do
        if mountpoint -q "$mounted"; then umount "$mounted"; fi
    done
    if mountpoint -q "$mnt"; then "$annals" umount "$mnt" || umount --lazy "$mnt"; fi
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null
        wait "$daemon" 2>/dev/null
    fi
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
    printf 'Quarterly report, version %s\n' "$1" >report.txt
    seq -f "line %.0f of version $1" 1000 >>report.txt
}
write_report 1
cp report.txt root/home/alice/report.txt
mkfs.ext4 -q -E "offset=$root_at" -L root -d root "$disk" "$((487424 / 2))k"
printf 'name: web01\nmemory: 2048\nscsi0: local:vm-100-disk-0,size=256M\n' >guest.conf

heading '2. The guest runs: QEMU serves its disk, and keeps dirty bitmaps of what it writes'
# qemu-storage-daemon stands for the whole of QEMU: the guest writes through the export `live-disk`, and a backup reads a frozen
# image of the disk over NBD, just as libvirt's pull mode and Proxmox VE arrange it. Its monitor is on the two ends of a pipe.
socket=$work/nbd.sock
: >live-disk
coproc monitor {
    exec qemu-storage-daemon --chardev stdio,id=monitor --monitor chardev=monitor \
        --nbd-server "addr.type=unix,addr.path=$socket" \
        --blockdev "driver=raw,node-name=disk,discard=unmap,file.driver=file,file.filename=$disk,file.discard=unmap" \
        --export "type=fuse,id=guest,node-name=disk,mountpoint=$work/live-disk,writable=on"
}
# shellcheck disable=SC2154 # coproc assigns it
daemon=$monitor_PID answers=${monitor[0]} commands=${monitor[1]}
told=()

# qmp COMMAND ARGUMENTS: a command to the monitor, which has to succeed; events that come in between are kept.
qmp() {
    local line
    printf '{"execute": "%s", "arguments": %s}\n' "$1" "${2:-{\}}" >&"$commands"
    while read -r line <&"$answers"; do
        case $line in
            *'"error": '*) fail "QEMU: $line" ;;
            *'"return": '*) return ;;
            *) told+=("$line") ;;
        esac
    done
    fail 'qemu-storage-daemon has ended'
}

# event NAME: waits until QEMU has told of it.
event() {
    local index line
    for index in "${!told[@]}"; do
        case ${told[index]} in
            *"\"$1\""*)
                unset "told[index]"
                return
                ;;
        esac
    done
    while read -r line <&"$answers"; do
        case $line in *"\"$1\""*) return ;; esac
        told+=("$line")
    done
    fail 'qemu-storage-daemon has ended'
}
qmp qmp_capabilities
note 'qemu-storage-daemon stands for a whole virtual machine here: it keeps its dirty bitmaps and freezes its disk as that does.'

# in_guest COMMAND…: what the guest itself would do to its files, done by debugfs, which needs no root.
in_guest() { printf '%s\n' "$@" | debugfs -w -f - "live-disk?offset=$root_at" >/dev/null 2>&1; }

# freeze CHECKPOINT [SINCE]: from here on the export drive-scsi0 shows the disk as it is now, whatever the guest writes, and, if
# SINCE is given, the bitmap `backup` of what has changed since that checkpoint.
freeze() {
    local actions exported='[]'
    qemu-img create -q -f qcow2 scratch.qcow2 256M
    qmp blockdev-add '{"node-name": "frozen", "driver": "qcow2", "backing": "disk", "file": {"driver": "file", "filename": "scratch.qcow2"}}'
    actions='{"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "'$1'"}}'
    if [ -n "${2:-}" ]; then
        actions+=', {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "backup", "disabled": true}}'
        actions+=', {"type": "block-dirty-bitmap-merge", "data": {"node": "disk", "target": "backup", "bitmaps": ["'$2'"]}}'
        actions+=', {"type": "block-dirty-bitmap-remove", "data": {"node": "disk", "name": "'$2'"}}'
        exported='["backup"]'
    fi
    actions+=', {"type": "blockdev-backup", "data": {"job-id": "freeze", "device": "disk", "target": "frozen", "sync": "none"}}'
    qmp transaction '{"actions": ['"$actions"']}'
    qmp block-export-add '{"type": "nbd", "id": "backup", "node-name": "frozen", "name": "drive-scsi0", "bitmaps": '"$exported"'}'
}

thaw() {
    qmp block-export-del '{"id": "backup"}'
    event BLOCK_EXPORT_DELETED
    qmp block-job-cancel '{"device": "freeze", "force": true}'
    event BLOCK_JOB_CANCELLED
    qmp blockdev-del '{"node-name": "frozen"}'
    if [ -n "${1:-}" ]; then qmp block-dirty-bitmap-remove '{"node": "disk", "name": "backup"}'; fi
    rm scratch.qcow2
}
source="drive-scsi0=nbd+unix:///drive-scsi0?socket=$socket"

heading '3. Four backups of the running guest: one full, then three of what has changed'
run "$annals" init --store "$store"
freeze point1
run "$annals" --store "$store" backup vm 100 --disk "$source" --checkpoint point1 --config guest.conf
thaw
for point in 2 3 4; do
    write_report "$point"
    case $point in
        4) in_guest 'rm /home/alice/report.txt' ;;
        *) in_guest 'rm /home/alice/report.txt' 'write report.txt /home/alice/report.txt' ;;
    esac
    freeze "point$point" "point$((point - 1))"
    run "$annals" --store "$store" backup vm 100 --disk "$source,bitmap=backup,since=point$((point - 1))" \
        --checkpoint "point$point" --config guest.conf
    thaw bitmap
done
note 'Before each of them alice had rewritten her report. Before the fourth somebody deleted it.'
run_line 'du -h store/100/*/*.qcow2'
run "$annals" --store "$store" list 100
run "$annals" --store "$store" show 100@latest

heading '4. A container beside it'
mkdir -p container/etc container/srv/www
echo db01 >container/etc/hostname
printf '<h1>It works</h1>\n' >container/srv/www/index.html
ln container/srv/www/index.html container/srv/www/home.html
ln -s index.html container/srv/www/start.html
run "$annals" --store "$store" backup container 101 container

heading '5. The store as a directory tree'
mkdir "$mnt"
run "$annals" --store "$store" mount --log-file annals.log "$mnt"
run find "$mnt" -maxdepth 2
run ls -lsh "$mnt/100/latest/"
note 'drive-scsi0.raw is the whole disk as it was then, however many layers it lies in; the part files are its partitions.'
run ls -lR "$mnt/101/latest/root"
diff -r --no-dereference container "$mnt/101/latest/root" || fail 'The container is not what it was.'
good "The container's tree is there to walk, without unpacking anything."

mapfile -t backups < <(cd "$mnt/100" && printf '%s\n' 20*)
third=$mnt/100/${backups[2]} fourth=$mnt/100/latest
heading '6. The lost file, out of the third backup'
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
    mkdir third fourth
    run mount -o ro,loop "$fourth/drive-scsi0.part2.raw" fourth
    run ls -l fourth/home/alice
    run mount -o ro,loop "$third/drive-scsi0.part2.raw" third
    run ls -l third/home/alice
    run cp third/home/alice/report.txt report-back.txt
    database=fourth/var/lib/database
else
    note 'Loop devices need root; without it, debugfs reads the partition files just as well.'
    run debugfs -R 'ls -l /home/alice' "$fourth/drive-scsi0.part2.raw"
    run debugfs -R 'ls -l /home/alice' "$third/drive-scsi0.part2.raw"
    run debugfs -R "dump /home/alice/report.txt report-back.txt" "$third/drive-scsi0.part2.raw"
    debugfs -R "dump /var/lib/database database" "$fourth/drive-scsi0.part2.raw" 2>/dev/null
    database=database
fi

heading '7. Is it the right one?'
write_report 3
run head -n 1 report-back.txt
cmp report.txt report-back.txt || fail 'The report is not that of the third backup.'
good 'The report is byte for byte what alice had then.'
cmp root/var/lib/database "$database" || fail 'The database is not what it was.'
good 'The database, which nobody touched, reads the same in the fourth backup through all four layers.'
qemu-img compare -q -U -f raw -F raw live-disk "$fourth/drive-scsi0.raw" || fail 'The disk is not what the guest has.'
good "The mounted disk of the fourth backup is identical to the guest's own, which is still running."

if [ "$(id -u)" -eq 0 ]; then
    umount fourth third
fi
run "$annals" umount "$mnt"
