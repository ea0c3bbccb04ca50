//! The JSON files of a store.
//!
//! Holds: what is read can be written, and what is written reads as the same again.

#![no_main]

use annals::format::manifest::{Attributes, Manifest, StoreMarker, to_json};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let written = to_json(&manifest).expect("it can be written");
        let again = Manifest::parse(&written).expect("what we wrote");
        assert_eq!(to_json(&again).expect("it can be written"), written);
    }
    if let Ok(marker) = StoreMarker::parse(bytes) {
        let written = to_json(&marker).expect("it can be written");
        assert_eq!(to_json(&StoreMarker::parse(&written).expect("what we wrote")).expect("again"), written);
    }
    if let Ok(attributes) = Attributes::parse(bytes) {
        let written = to_json(&attributes).expect("it can be written");
        assert_eq!(to_json(&Attributes::parse(&written).expect("what we wrote")).expect("again"), written);
    }
});
