#!/usr/bin/env bash
# Runs every fuzz target, or those named, for SECONDS each, one after the other, from a corpus made of small good inputs.
#
#   run.sh [SECONDS [TARGET...]]
#
# Ends with 1 when a target fails; what made it fail is then in tests/fuzz/artifacts/TARGET, and
# `RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz TARGET FILE` shows it again.
set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")/../.."
seconds=${1:-30}
shift || true
fuzz=tests/fuzz
# Sanitizers are for nightly compilers; this lets the stable one have them.
export RUSTC_BOOTSTRAP=1

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(sed -n 's/^path = "targets\/\(.*\)\.rs"$/\1/p' $fuzz/Cargo.toml)
fi
$fuzz/seeds.sh

cargo fuzz build --fuzz-dir $fuzz
failed=()
for target in "${targets[@]}"; do
    printf '== %s\n' "$target"
    cargo fuzz run --fuzz-dir $fuzz "$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1 ||
        failed+=("$target")
done
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[*]}" >&2
    exit 1
fi
