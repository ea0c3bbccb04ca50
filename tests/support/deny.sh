#!/usr/bin/env bash
# Runs cargo-deny by deny.toml. Licences, bans and sources need no network and always run. Known advisories come from the RustSec
# database: where it cannot be fetched, the copy of an earlier run is used, and where there is none either, that is said aloud.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

deny=(cargo deny --workspace --all-features)
"${deny[@]}" check bans licenses sources

if reason=$(timeout 120 cargo deny fetch db 2>&1); then
    "${deny[@]}" check advisories
elif [ -n "$(find "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" -mindepth 1 -maxdepth 1 -type d 2>/dev/null)" ]; then
    echo "WARNING: the RustSec database cannot be fetched; using the copy of an earlier run." >&2
    "${deny[@]}" check --disable-fetch advisories
else
    {
        echo "WARNING: ADVISORIES WERE NOT CHECKED: the RustSec database cannot be reached and there is no earlier copy."
        echo "         Licences, bans and sources were. On a machine with network access, run: make lint"
        echo "         Why: ${reason##*$'\n'}"
    } >&2
fi
