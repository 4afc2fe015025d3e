//! Frames of a runner: however the bytes come in pieces, the same frames are read, and none is longer than announced.

use portcullis::ext_plugin::frame::{HEADER, Read, header, read};

/// Reads bytes as frames one behind the other, all at once and byte by byte.
pub fn run(data: &[u8]) {
    let mut rest = data;
    while let Read::Frame { kind, payload } = read(rest) {
        let whole = HEADER + payload;
        assert_eq!(header(kind, payload).as_ref().map(<[u8; HEADER]>::as_slice), Some(&rest[..HEADER]));
        for cut in (0..whole).take(64).chain([whole - 1]) {
            let Read::Incomplete(least) = read(&rest[..cut]) else { panic!("a frame of {cut} bytes") };
            assert!(cut < least && least <= whole);
        }
        assert_eq!(read(&rest[..whole]), Read::Frame { kind, payload });
        rest = &rest[whole..];
    }
    let Read::Incomplete(least) = read(rest) else { panic!("it was incomplete before") };
    assert!(rest.len() < least);
}
