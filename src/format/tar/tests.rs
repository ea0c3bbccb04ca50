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
