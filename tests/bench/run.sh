#!/usr/bin/env bash
# Runs the benchmark and leaves nothing behind, also when it is interrupted: no process, no mount, no image.
#
#   run.sh [PART...]: only these parts (disk, many, backup, tree); the page in docs/ is then left as it is.
set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")/../.."
parent=${ANNALS_BENCH_DIR:-target}
mkdir -p "$parent"
ANNALS_BENCH_DIR=$(mktemp -d -p "$(readlink -f "$parent")" bench-XXXXXX)
export ANNALS_BENCH_DIR

clean_up() {
    local mountpoint
    # The daemons behind the mounts end with them.
    awk -v dir="$ANNALS_BENCH_DIR/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | while read -r mountpoint; do
        umount -l "$mountpoint" || true
    done
    rm -rf "$ANNALS_BENCH_DIR"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

cargo bench --locked --quiet --bench side_by_side -- "$@"
