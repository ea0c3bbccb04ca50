//! mount.annals: placeholder.
fn main() {}
