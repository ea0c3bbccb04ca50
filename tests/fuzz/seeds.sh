#!/usr/bin/env bash
# Makes the seeds of the fuzz targets' corpora: small inputs that are good, by the tools that make such things.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname "$(readlink -f "$0")")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for target in qcow2 chain partition names manifest ovf nbd tar squashfs; do
    mkdir -p "corpus/$target"
done

# image NAME OPTIONS SIZE COMMAND...: a qcow2 image, with commands of qemu-io done to it.
image() {
    local file=$work/$1 options=$2 size=$3 command
    shift 3
    qemu-img create -q -f qcow2 -o "$options" "$file" "$size"
    for command in "$@"; do
        qemu-io -f qcow2 -d unmap -c "$command" "$file" >"$work/said" || {
            cat "$work/said" >&2
            return 1
        }
    done
}

# The number as two bytes, the low one first.
le16() {
    # shellcheck disable=SC2059 # the format is made of the number
    printf "\\$(printf %03o $(($1 & 255)))\\$(printf %03o $(($1 >> 8 & 255)))"
}

image plain cluster_size=512 16k 'write -q -P 1 0 1500' 'write -q -z 2048 512' 'write -q -z -u 4096 1k'
image v2 compat=0.10,cluster_size=512 16k 'write -q -P 2 1k 3k'
image deflate cluster_size=1k 32k 'write -q -c -P 3 0 2k' 'write -q -c -P 4 8k 1k'
image zstd cluster_size=1k,compression_type=zstd 32k 'write -q -c -P 5 0 2k' 'write -q -P 6 1500 100'
image subclusters cluster_size=16k,extended_l2=on 64k 'write -q -P 7 512 512' 'write -q -z -u 2k 1k' 'discard -q 16k 16k'
qemu-img bitmap --add "$work/plain" marks
qemu-img snapshot -q -c before "$work/plain"
for name in plain v2 deflate zstd subclusters; do
    cp "$work/$name" "corpus/qcow2/seed-$name"
done
# An image over itself, and one over the raw file that the target puts beside it.
for backing in a raw; do
    image "over-$backing" cluster_size=512 16k 'write -q -P 8 512 512'
    qemu-img rebase -u -f qcow2 -b $backing -F "$([ $backing = raw ] && echo raw || echo qcow2)" "$work/over-$backing"
    cp "$work/over-$backing" "corpus/qcow2/seed-over-$backing"
done

# chain NAME A B C: cut where the target cuts.
chain() {
    local name=$1
    shift
    {
        le16 $(($(stat -c %s "$work/$1") / 8))
        le16 $(($(stat -c %s "$work/$2") / 8))
        cat "$work/$1" "$work/$2" "$work/$3"
    } >"corpus/chain/seed-$name"
}
for cluster in 512 1024; do
    image "c$cluster" cluster_size=$cluster 12k 'write -q -P 1 0 12k'
    image "b$cluster" cluster_size=$cluster 16k 'write -q -P 2 1k 2k' 'write -q -z -u 6k 1k'
    image "a$cluster" cluster_size=$cluster 20k 'write -q -P 3 3k 512' 'write -q -c -P 4 8k 1k'
    qemu-img rebase -u -f qcow2 -b c -F qcow2 "$work/b$cluster"
    qemu-img rebase -u -f qcow2 -b b -F qcow2 "$work/a$cluster"
    # The cuts are at multiples of eight bytes.
    for layer in a b c; do
        truncate -s %8 "$work/$layer$cluster"
    done
    chain "of-$cluster" "a$cluster" "b$cluster" "c$cluster"
done

# table NAME SIZE SCRIPT: what of a partitioned disk holds its table, and two bytes of zeros to come.
table() {
    rm -f "$work/disk"
    truncate -s "$2" "$work/disk"
    printf '%b' "$3" | sfdisk -q "$work/disk"
    { le16 0; cat "$work/disk"; } >"corpus/partition/seed-$1"
}
table mbr 40k 'label: dos\n1,8,L\n10,60,E\n11,4,L\n20,4,S\n'
table gpt 60k 'label: gpt\nfirst-lba: 34\n34,8,L\n42,8,U\n'
truncate -s 64k "$work/fat"
mkfs.vfat "$work/fat" >"$work/said"
{ le16 0; cat "$work/fat"; } >corpus/partition/seed-fat

names=(100 web01 100@latest 100@2024-11-07T16:51:22Z 100@2024-11-07 2024-11-07T16-51-22Z 2024-11-07T17:51:22+01:00 1730998282
    ../qemu-2024-11-06T16-51-22Z/drive-scsi0.qcow2 /var/backups/100/qemu-1/drive.qcow2 'json:{"driver":"raw"}' nbd://h/x qcow2
    'nbds+unix:///vda?socket=/run/s&tls-certificates=/etc/pki' 'nbd://[::1]:10809/disk%20one')
for index in "${!names[@]}"; do
    printf %s "${names[index]}" >"corpus/names/seed-$index"
done

printf %s '{"version":1,"uuid":"8d2f0a4e-6a1c-4a52-9d5e-3c1b1f0a7e11","created":"2024-11-07T16:51:22Z"}' >corpus/manifest/seed-store
printf %s '{"version":1,"backups":{"qemu-2024-11-07T16-51-22Z":{"protected":true,"notes":"before the upgrade"}}}' \
    >corpus/manifest/seed-attributes
printf %s '{"version":1,"guest":"100","kind":"qemu","time":"2024-11-07T16:51:22Z","tool":{"name":"annals","version":"1"},
"disks":[{"name":"drive-scsi0","file":"drive-scsi0.qcow2","format":"qcow2","size":34359738368,"reason":"incremental",
"parent":{"backup":"qemu-2024-11-06T16-51-22Z","file":"drive-scsi0.qcow2"},"bitmap":"annals","checkpoint":"c1",
"hash":{"blake3":"00","size":1,"chunk_size":65536,"chunks":"drive-scsi0.b3"}}]}' >corpus/manifest/seed-qemu
printf %s '{"version":1,"guest":"101","kind":"lxc","time":"2024-11-07T16:51:22Z","archive":{"file":"archive.tar","format":"tar"}}' \
    >corpus/manifest/seed-lxc

cat >corpus/ovf/seed-machine <<'OVF'
<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/" xmlns:rasd="r" xmlns:xsi="x" ovf:version="4.4.0.0">
<References><File ovf:href="d1/i1" ovf:id="i1" ovf:size="1"/><File ovf:href="d1/i2" ovf:id="i2" ovf:size="1"/></References>
<Section xsi:type="ovf:DiskSection_Type"><Disk ovf:diskId="i1" ovf:size="1" ovf:fileRef="d1/i1" ovf:parentRef=""
ovf:vm_snapshot_id="s1" ovf:volume-format="COW" ovf:disk-alias="root &amp; more"/><Disk ovf:diskId="i2" ovf:fileRef="d1/i2"
ovf:parentRef="i1" ovf:vm_snapshot_id="s2" ovf:volume-format="RAW"/></Section>
<Content ovf:id="out"><Name>web01</Name><Section xsi:type="ovf:SnapshotsSection_Type"><Snapshot ovf:id="s1"><Type>REGULAR</Type>
<Description>before</Description><CreationDate>2024/11/07 16:51:22</CreationDate></Snapshot><Snapshot ovf:id="s2"><Type>ACTIVE</Type>
<CreationDate>2024/11/08 16:51:22</CreationDate></Snapshot></Section></Content></ovf:Envelope>
OVF

printf 'NBDMAGICIHAVEOPT\0\003' >corpus/nbd/seed-greeting
printf '\0\003\350\211\004\125\145\251\0\0\0\007\0\0\0\003\0\0\0\0' >corpus/nbd/seed-option
printf '\147\104\146\230\0\0\0\0\0\0\0\0\0\0\0\001' >corpus/nbd/seed-simple
printf '\146\217\063\357\0\001\0\005\0\0\0\0\0\0\0\001\0\0\0\014' >corpus/nbd/seed-chunk
printf '\0\0\0\001\0\001\0\0\0\0\0\003\0\020\0\0\0\0\0\0' >corpus/nbd/seed-status

# A tree with a little of everything, in each kind of archive.
mkdir -p "$work/tree/etc"
echo text >"$work/tree/etc/passwd"
ln "$work/tree/etc/passwd" "$work/tree/second"
ln -s etc/passwd "$work/tree/link"
mkfifo "$work/tree/pipe"
truncate -s 60k "$work/tree/holes"
printf 'data' | dd of="$work/tree/holes" bs=1 seek=20000 conv=notrunc status=none
touch "$work/tree/$(printf 'long%.0s' {1..40})"
for format in v7 ustar gnu posix; do
    tar --format=$format -S --xattrs -b1 -cf "corpus/tar/seed-$format" -C "$work/tree" . 2>/dev/null ||
        tar --format=$format -S -b1 -cf "corpus/tar/seed-$format" -C "$work/tree" etc second link
done
for version in 0.0 0.1; do
    tar --format=posix -S --sparse-version=$version -b1 -cf "corpus/tar/seed-sparse-$version" -C "$work/tree" .
done
for compressor in gzip xz lzo lz4 zstd; do
    mksquashfs "$work/tree" "corpus/squashfs/seed-$compressor" -noappend -quiet -no-progress -comp $compressor -nopad >/dev/null
done
mksquashfs "$work/tree" corpus/squashfs/seed-open -noappend -quiet -no-progress -noI -noD -noF -noX -b 4096 -nopad >/dev/null
