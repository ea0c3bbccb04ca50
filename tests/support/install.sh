#!/usr/bin/env bash
# install.sh DESTDIR PREFIX SBINDIR: puts the release build in its places. `make install` calls it.
#
# mount.annals stands in PREFIX/sbin, where it finds its annals in PREFIX/bin. mount(8) looks in SBINDIR alone, so there it is
# linked, unless that is the same directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
destdir=$1 prefix=$2 sbindir=$3

built=target/release
for program in annals mount-annals; do
    if [ ! -x "$built/$program" ]; then
        echo "$built/$program is not there: run 'make build' first, as yourself" >&2
        exit 1
    fi
done

share=$destdir$prefix/share
install -Dm 755 "$built/annals" "$destdir$prefix/bin/annals"
install -Dm 755 "$built/mount-annals" "$destdir$prefix/sbin/mount.annals"
# Most of a program's size is for debuggers; what a crash needs to name its place stays.
if command -v strip >/dev/null; then
    strip --strip-debug "$destdir$prefix/bin/annals" "$destdir$prefix/sbin/mount.annals"
fi
if [ "$prefix/sbin" != "$sbindir" ]; then
    mkdir -p "$destdir$sbindir"
    ln -sf "$prefix/sbin/mount.annals" "$destdir$sbindir/mount.annals"
fi

for page in docs/man/*.1; do
    install -Dm 644 "$page" "$share/man/man1/${page##*/}"
done
install -Dm 644 docs/mount.annals.8 "$share/man/man8/mount.annals.8"

completion() {
    mkdir -p "$(dirname "$share/$2")"
    "$built/annals" completions "$1" >"$share/$2"
}
completion bash bash-completion/completions/annals
completion zsh zsh/site-functions/_annals
completion fish fish/vendor_completions.d/annals.fish
