use proptest::prelude::*;

use super::*;

#[test]
fn requests_are_encoded_as_the_document_lays_them_out() {
    let request =
        Request { flags: CommandFlags::REQ_ONE, command: 7, cookie: 0x0102_0304_0506_0708, offset: 0x1000, len: 0x200 };
    let mut bytes = Vec::new();
    request.encode(HeaderStyle::Structured, &mut bytes).unwrap();
    let compact = b"\x25\x60\x95\x13\0\x08\0\x07\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\x02\0";
    assert_eq!(bytes, compact);
    bytes.clear();
    request.encode(HeaderStyle::Extended, &mut bytes).unwrap();
    let extended = b"\x21\xe4\x1c\x71\0\x08\0\x07\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x02\0";
    assert_eq!(bytes, extended);
}

#[test]
fn a_length_of_more_than_32_bits_needs_extended_headers() {
    let request = Request { flags: CommandFlags::default(), command: 7, cookie: 1, offset: 0, len: 1 << 32 };
    assert!(request.encode(HeaderStyle::Simple, &mut Vec::new()).is_err());
    assert!(request.encode(HeaderStyle::Structured, &mut Vec::new()).is_err());
    assert!(request.encode(HeaderStyle::Extended, &mut Vec::new()).is_ok());
}

#[test]
fn options_are_encoded_as_the_document_lays_them_out() {
    let data = encode_info_request("vda", &[3]).unwrap();
    assert_eq!(data, b"\0\0\0\x03vda\0\x01\0\x03");
    assert_eq!(encode_option(7, &data).unwrap(), [&b"IHAVEOPT\0\0\0\x07\0\0\0\x0b"[..], &data].concat());
    let data = encode_meta_context_request("", &["a:b".to_owned(), "c:".to_owned()]).unwrap();
    assert_eq!(data, b"\0\0\0\0\0\0\0\x02\0\0\0\x03a:b\0\0\0\x02c:");
}

#[test]
fn names_that_the_protocol_cannot_carry_are_not_sent() {
    assert!(encode_info_request(&"x".repeat(4097), &[]).is_err());
    assert!(encode_info_request("a\0b", &[]).is_err());
    assert!(encode_meta_context_request("", &["y".repeat(4097)]).is_err());
}

#[test]
fn the_client_answers_only_with_flags_that_it_knows() {
    assert_eq!(client_flags(HandshakeFlags(0xffff)), [0, 0, 0, 3]);
    assert_eq!(client_flags(HandshakeFlags(0xfffc)), [0, 0, 0, 0]);
}

#[test]
fn what_a_server_says_to_people_cannot_move_their_cursor() {
    let entry = ListedName::parse(b"\0\0\0\x01xa\x1b[2Jb\xff").unwrap();
    assert_eq!((entry.name.as_str(), entry.description.as_str()), ("x", "a\u{fffd}[2Jb\u{fffd}"));
}

#[test]
fn a_listed_name_longer_than_its_entry_is_refused() {
    assert!(ListedName::parse(b"\0\0\0\x05four").is_err());
    assert!(ListedName::parse(b"\xff\xff\xff\xfffour").is_err());
    assert!(ListedName::parse(b"\0\0").is_err());
}

#[test]
fn neighbours_of_one_status_are_one_extent() {
    let payload =
        [&[0, 0, 0, 9][..], &[0, 0, 2, 0, 0, 0, 0, 3], &[0, 0, 2, 0, 0, 0, 0, 3], &[0, 0, 2, 0, 0, 0, 0, 0]].concat();
    let status = BlockStatus::parse(false, &payload).unwrap();
    assert_eq!(status.context, 9);
    assert_eq!(status.extents, [BlockExtent { len: 1024, status: 3 }, BlockExtent { len: 512, status: 0 }]);
}

/// Every parser of what a server sends. Errors are fine; a panic or a result that breaks its own rules is a bug.
fn parse_everything(bytes: &[u8]) {
    fn head<const N: usize>(bytes: &[u8]) -> Option<&[u8; N]> {
        bytes.first_chunk()
    }
    let _ = head(bytes).map(Greeting::parse);
    let _ = head(bytes).map(SimpleReply::parse);
    let _ = head(bytes).map(ExportSize::parse);
    if let Some(Ok(header)) = head(bytes).map(|head| OptionReplyHeader::parse(3, head)) {
        assert!(header.len <= MAX_OPTION_REPLY);
    }
    for header in [head(bytes).map(ChunkHeader::parse_structured), head(bytes).map(ChunkHeader::parse_extended)] {
        if let Some(Ok(header)) = header
            && header.kind != ChunkKind::OffsetData
        {
            assert!(header.len <= 8 + 16 * u64::from(MAX_STATUS_EXTENTS), "{header:?}");
        }
    }
    let _ = ListedName::parse(bytes);
    let _ = MetaContext::parse(bytes);
    let _ = OffsetHole::parse(bytes).map(|hole| assert_ne!(hole.len, 0));
    if let Ok(Info::BlockSizes(sizes)) = Info::parse(bytes) {
        assert!(sizes.minimum <= sizes.preferred && sizes.preferred <= sizes.maximum && sizes.minimum > 0);
    }
    for kind in [constants::REPLY_ERROR, constants::REPLY_ERROR_OFFSET, 0x8765] {
        let _ = ErrorChunk::parse(kind, bytes).map(|error| assert_ne!(error.errno.0, 0));
    }
    for extended in [false, true] {
        if let Ok(status) = BlockStatus::parse(extended, bytes) {
            assert!(!status.extents.is_empty() && status.extents.len() * 8 <= bytes.len());
            assert!(status.extents.iter().all(|extent| extent.len > 0));
            assert!(status.extents.iter().try_fold(0_u64, |sum, extent| sum.checked_add(extent.len)).is_some());
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        parse_everything(&bytes);
    }

    #[test]
    fn bytes_that_look_like_messages_do_not_either(
        start in prop_oneof![
            Just(b"NBDMAGICIHAVEOPT".to_vec()),
            Just(b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03".to_vec()),
            Just(vec![0, 0, 0, 1, 0, 0, 0, 2]),
            Just(vec![0, 1, 0, 5]),
            Just(vec![0, 3]),
            Just(vec![0, 0, 0, 22, 0, 3]),
        ],
        rest in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..120),
    ) {
        parse_everything(&[start, rest].concat());
    }

    #[test]
    fn chunk_headers_are_read_back_as_they_were_written(done: bool, cookie: u64, offset: u64, len in 9_u64..1 << 32) {
        let mut bytes = vec![0, u8::from(done), 0, 1];
        bytes.extend(cookie.to_be_bytes());
        let structured = [&bytes[..], &u32::try_from(len).unwrap().to_be_bytes()].concat();
        let expected = ChunkHeader { done, kind: ChunkKind::OffsetData, cookie, offset: None, len };
        prop_assert_eq!(ChunkHeader::parse_structured(structured[..].try_into().unwrap()).unwrap(), expected);
        let extended = [&bytes[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat();
        let expected = ChunkHeader { offset: Some(offset), ..expected };
        prop_assert_eq!(ChunkHeader::parse_extended(extended[..].try_into().unwrap()).unwrap(), expected);
    }
}
