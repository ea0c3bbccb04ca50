use super::header::number;
use super::*;

#[test]
fn numbers_are_octal_with_blanks_around_or_binary_with_a_sign() {
    assert_eq!(number(b"0000644\0"), Some(0o644));
    assert_eq!(number(b"   644 \0"), Some(0o644));
    assert_eq!(number(b"        "), Some(0));
    assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
    assert_eq!(number(b"0000648\0"), None);
    assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
    assert_eq!(number(&[0xff; 12]), Some(-1));
    assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]), Some(-256));
    assert_eq!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]), None, "past 64 bits");
    assert_eq!(number(b"777777777777777777777777"), None, "past 64 bits");
}

#[test]
fn a_checksum_of_signed_bytes_is_as_good() {
    let mut block = [0_u8; BLOCK];
    block[0] = 0xe4;
    let unsigned = 0xe4 + 8 * 32;
    for sum in [unsigned, unsigned - 256] {
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(Header::parse(&block).is_some(), "{sum}");
    }
    block[148..156].copy_from_slice(format!("{:06o}\0 ", unsigned + 1).as_bytes());
    assert!(Header::parse(&block).is_none());
}

#[test]
fn acls_come_out_as_the_system_shows_them() {
    let entry = |tag: u8, bits: u8, id: u32| [&[tag, 0, bits, 0][..], &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let expected = [
        vec![2, 0, 0, 0],
        entry(1, 7, none),
        entry(2, 4, 1000),
        entry(2, 6, 1001),
        entry(4, 5, none),
        entry(16, 7, none),
        entry(32, 0, none),
    ]
    .concat();
    for text in [
        "user::rwx,user:1001:rw-,user:1000:r--,group::r-x,mask::rwx,other::---",
        "user::rwx\nuser:joe:r--:1000\nuser:1001:rw-\t#effective:rw-\ngroup::r-x\nmask:rwx\nother:---\n",
        "u::rwx,u:1000:r,u:1001:rw,g::rx,m::rwx,o::",
    ] {
        assert_eq!(acl_to_xattr(text.as_bytes()), Some(expected.clone()), "{text}");
        assert_eq!(acl_permissions(&expected), Some(0o770), "the mask is the group's");
    }
    assert_eq!(acl_permissions(&acl_to_xattr(b"u::rw,g::r,o::x").unwrap()), Some(0o641));
    for no in ["user:joe:r--", "user::rwz", "friend::rwx", "user", "mask:5:rwx", "user:1:rwx:2:3", "\u{ff}"] {
        assert_eq!(acl_to_xattr(no.as_bytes()), None, "{no}");
        assert_eq!(acl_permissions(no.as_bytes()), None, "{no}");
    }
}

#[test]
fn acls_that_name_users_are_told_by_numbers_and_other_records_stay_as_they_are() {
    let text = "user::rwx\nuser:7:r--\ngroup::r-x\nmask::rwx\nother::---\n";
    let binary = acl_to_xattr(text.as_bytes()).unwrap();
    assert_eq!(acl_to_text(&binary).as_deref(), Some(text));
    let record = |key: &str, value: &[u8]| {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let len = (1..).find(|len: &usize| *len == rest.len() + len.to_string().len()).unwrap();
        [len.to_string().into_bytes(), rest].concat()
    };
    let path = record("path", &[b'x'; 120]);
    let of_system = record("SCHILY.xattr.system.posix_acl_access", &binary);
    let with = |acl: &str| [path.clone(), record("SCHILY.acl.access", acl.as_bytes()), of_system.clone()].concat();
    let named = with(&text.replace(":7:", ":games:"));
    assert_eq!(with_numbers_in_acls(&named).unwrap().unwrap(), with(text));
    assert_eq!(with_numbers_in_acls(&with(text)).unwrap(), None, "numbers already");
    assert!(with_numbers_in_acls(&record("SCHILY.acl.access", b"user:games:r--")).is_err(), "nobody knows who");
    let fields = Fields::parse(&GlobalFields::default(), &named).unwrap();
    assert_eq!(fields.xattrs, [(b"system.posix_acl_access".to_vec(), binary)]);
    assert!(fields.problems.is_empty(), "{:?}", fields.problems);
    for value in [&b""[..], b"\x02\0\0\0\x01", b"\x01\0\0\0", b"\x02\0\0\0\x03\0\x01\0\x01\0\0\0"] {
        assert_eq!(acl_to_text(value), None);
    }
}

#[test]
fn a_header_for_another_size_has_that_size_and_a_checksum_that_fits() {
    let mut block = [0_u8; BLOCK];
    block[..4].copy_from_slice(b"name");
    block[124..136].copy_from_slice(b"00000000010\0");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let header = Header::parse(&block).unwrap();
    let other = header.resized(0o7654321).unwrap();
    let other = Header::parse(&other).unwrap();
    assert_eq!((other.size().unwrap(), other.name()), (0o7654321, b"name".to_vec()));
    assert_eq!(header.resized(1 << 33), None);
}

#[test]
fn a_map_before_the_data_is_read_across_blocks_and_no_further() {
    let text = format!("100\n{}", (0..100).map(|i| format!("{}\n{}\n", i * 1000, 500)).collect::<String>());
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    let mut reader = MapReader::new(100);
    let blocks = bytes.chunks(BLOCK).position(|block| reader.take(block).unwrap()).unwrap();
    assert_eq!(blocks + 1, bytes.len() / BLOCK);
    assert_eq!(reader.finish()[99], Extent { offset: 99_000, len: 500 });
    assert!(MapReader::new(99).take(&bytes[..BLOCK]).is_err(), "more than the limit");
    assert!(MapReader::new(9).take(b"x\n").is_err());
    assert!(MapReader::new(9).take(&[b'1'; 30]).is_err(), "a number without an end");
    assert!(MapReader::new(9).take(b"0\n").unwrap(), "a file of one hole");
}

#[test]
fn names_of_attributes_are_read_as_gnu_tar_and_libarchive_spell_them() {
    let record = |key: &str, value: &[u8]| {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let len = (1..).find(|len: &usize| *len == rest.len() + len.to_string().len()).unwrap();
        [len.to_string().into_bytes(), rest].concat()
    };
    let xattrs = |data: &[u8]| Fields::parse(&GlobalFields::default(), data).unwrap().xattrs;
    let one = |name: &str, value: &[u8]| vec![(name.as_bytes().to_vec(), value.to_vec())];
    for (spelled, name) in [("a%3Db%25c", "a=b%c"), ("a%253D", "a%3D"), ("a%41%", "a%41%")] {
        let data = record(&format!("SCHILY.xattr.user.{spelled}"), b"v");
        assert_eq!(xattrs(&data), one(&format!("user.{name}"), b"v"));
    }
    // libarchive says it twice.
    let twice = [record("LIBARCHIVE.xattr.user.a%20b", b"AAE"), record("SCHILY.xattr.user.a%20b", b"\0\x01")].concat();
    assert_eq!(xattrs(&twice), one("user.a b", b"\0\x01"));

    let value: Vec<u8> = (0..=255).collect();
    for len in [0, 1, 2, 3, 256] {
        let path = record("path", b"p");
        let data = [path.clone(), record("SCHILY.xattr.user.a%3Db", &value[..len])].concat();
        let rewritten = as_tar2sqfs_takes_them(&data).unwrap();
        assert!(rewritten.windows(16).any(|part| part == b"LIBARCHIVE.xattr"));
        assert_eq!(xattrs(&rewritten), one("user.a=b", &value[..len]), "{len} bytes");
        assert_eq!(as_tar2sqfs_takes_them(&path), None);
    }
    let true_name = record("GNU.sparse.name", b"n");
    assert_eq!(as_tar2sqfs_takes_them(&[true_name.clone(), record("path", b"made up")].concat()), Some(true_name));
}
