//! POSIX ACLs as text (`user::rwx,group:100:r-x,mask::r-x,…`) and as the system shows them in an extended attribute.
//!
//! The binary form is that of Linux' `linux/posix_acl_xattr.h`: a version, then tag, permissions and id of each entry.

const VERSION: u32 = 2;
/// The id of an entry that has none.
const NO_ID: u32 = u32::MAX;

const USER_OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OWNER: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The value of `system.posix_acl_access` or `_default` that the text stands for, or `None` where it is no ACL.
///
/// Entries are apart by commas or line breaks. Who an entry is for must be told by number: in its place, as GNU tar writes
/// with `--numeric-owner`, or in a fourth field, as star and libarchive do. Names mean nothing outside the guest.
#[must_use]
pub fn acl_to_xattr(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']) {
        // "#effective:…" may follow an entry in its long form.
        let entry = entry.split('#').next().unwrap_or_default().trim();
        if !entry.is_empty() {
            entries.push(parse_entry(entry)?);
        }
    }
    // The kernel gives them in this order, whatever the archive has.
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Some(value)
}

/// The text of the ACL that is the value of `system.posix_acl_access` or `_default`, as GNU tar writes it where it finds no
/// names for the ids; `None` where the value is no ACL.
#[must_use]
pub fn acl_to_text(value: &[u8]) -> Option<String> {
    let (version, entries) = value.split_first_chunk()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut text = String::new();
    for entry in entries.chunks_exact(8) {
        let [t0, t1, p0, p1, id @ ..] = entry else { return None };
        let id = u32::from_le_bytes(*id.first_chunk()?);
        let (kind, who) = match u16::from_le_bytes([*t0, *t1]) {
            USER_OWNER => ("user", String::new()),
            USER => ("user", id.to_string()),
            GROUP_OWNER => ("group", String::new()),
            GROUP => ("group", id.to_string()),
            MASK => ("mask", String::new()),
            OTHER => ("other", String::new()),
            _ => return None,
        };
        let permissions = u16::from_le_bytes([*p0, *p1]);
        let bit = |bit: u16, c: char| if permissions & bit != 0 { c } else { '-' };
        text += &format!("{kind}:{who}:{}{}{}\n", bit(4, 'r'), bit(2, 'w'), bit(1, 'x'));
    }
    Some(text)
}

/// The permission bits of a file whose `system.posix_acl_access` this is: its group's are those of the mask, where there is one.
///
/// `None` where an entry that every ACL has is missing.
#[must_use]
pub fn acl_permissions(value: &[u8]) -> Option<u16> {
    let entries = value.get(size_of_val(&VERSION)..)?.chunks_exact(8);
    let bits = |wanted: u16| {
        entries.clone().find_map(|entry| match entry {
            [a, b, c, d, ..] if u16::from_le_bytes([*a, *b]) == wanted => Some(u16::from_le_bytes([*c, *d]) & 7),
            _ => None,
        })
    };
    let group = bits(MASK).or(bits(GROUP_OWNER))?;
    Some(bits(USER_OWNER)? << 6 | group << 3 | bits(OTHER)?)
}

/// Tag, id and permissions of one entry.
fn parse_entry(entry: &str) -> Option<(u16, u32, u16)> {
    let mut fields = entry.split(':');
    let kind = fields.next()?;
    let who = fields.next()?;
    let (who, permissions) = match (kind, fields.next()) {
        // star's short form of those without a name: "other:r-x".
        ("mask" | "m" | "other" | "o", None) => ("", who),
        (_, permissions) => (who, permissions?),
    };
    let numeric = fields.next();
    if fields.next().is_some() {
        return None;
    }
    let tag = match (kind, who.is_empty()) {
        ("user" | "u", true) => USER_OWNER,
        ("user" | "u", false) => USER,
        ("group" | "g", true) => GROUP_OWNER,
        ("group" | "g", false) => GROUP,
        ("mask" | "m", true) => MASK,
        ("other" | "o", true) => OTHER,
        _ => return None,
    };
    let id = if who.is_empty() { NO_ID } else { numeric.unwrap_or(who).parse().ok()? };
    let permissions = permissions.chars().try_fold(0_u16, |bits, c| match c {
        'r' => Some(bits | 4),
        'w' => Some(bits | 2),
        'x' => Some(bits | 1),
        '-' => Some(bits),
        _ => None,
    })?;
    Some((tag, id, permissions))
}
