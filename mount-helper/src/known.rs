//! The options that are understood, by name.

/// Options that tell mount(8) or systemd something, and `annals` nothing; some may have a value.
pub(crate) const OWN: [&str; 16] = [
    "_netdev", "auto", "comment", "defaults", "group", "helper", "noauto", "nofail", "nogroup", "noowner", "nouser",
    "nousers", "owner", "uhelper", "user", "users",
];

/// The same, by what they begin with: `x-systemd.automount`, `X-mount.mkdir`.
pub(crate) const OWN_PREFIXES: [&str; 2] = ["x-", "X-"];

/// Flags that change nothing for a mount that is read-only and whose times do not move.
///
/// `rw` is among them because mount(8) adds it wherever nobody asked for `ro`.
pub(crate) const WITHOUT_EFFECT: [&str; 24] = [
    "async",
    "atime",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodiratime",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosub",
    "relatime",
    "rw",
    "silent",
    "strictatime",
    "sub",
    "symfollow",
    "sync",
];

/// Options that ask for what a mount of annals never does, and what to say of each.
pub(crate) const CONTRARY: [(&str, &str); 4] = [
    ("dev", "a mount of annals is always nodev"),
    ("loop", "a store is a directory, not an image"),
    ("remount", "a mount of annals cannot be changed: unmount it, then mount it again"),
    ("suid", "a mount of annals is always nosuid"),
];

/// What `annals mount -o` takes, by name. `tests/mount_helper.rs` of the root package holds this list and that of `annals` together.
pub(crate) const ANNALS: [&str; 13] = [
    "allow_other",
    "allow_root",
    "cache_size",
    "default_permissions",
    "gid",
    "log_file",
    "nodev",
    "noexec",
    "nonempty",
    "nosuid",
    "ro",
    "uid",
    "umask",
];
