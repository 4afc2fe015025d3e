//! Frames: four bytes (type, length in 24 bits, big endian) and a payload.
//!
//! Pure. Invariant: no input makes it fail; what is not whole yet is incomplete, and any type is a frame.

/// The largest payload, in bytes: what 24 bits can say.
pub const MAX_PAYLOAD: usize = (1 << 24) - 1;

/// Bytes in front of the payload.
pub const HEADER: usize = 4;

/// The types of frames. APISIX: constants.lua `RPC_*`.
pub mod kind {
    /// Instead of any reply.
    pub const ERROR: u8 = 0;
    /// A plugin configuration is made known.
    pub const PREPARE_CONF: u8 = 1;
    /// A request passes through the runner's plugins.
    pub const HTTP_REQ_CALL: u8 = 2;
    /// The runner asks back, inside of a call.
    pub const EXTRA_INFO: u8 = 3;
    /// A response passes through the runner's plugins.
    pub const HTTP_RESP_CALL: u8 = 4;
}

/// A frame at the beginning of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// Not whole yet: it has at least this many bytes.
    Incomplete(usize),
    /// Whole.
    Frame {
        /// Its type.
        kind: u8,
        /// How many bytes its payload has.
        payload: usize,
    },
}

/// The bytes in front of a payload; `None` when it is larger than [`MAX_PAYLOAD`].
pub fn header(kind: u8, payload: usize) -> Option<[u8; HEADER]> {
    let length = u32::try_from(payload).ok().filter(|_| payload <= MAX_PAYLOAD)?;
    let [_, high, middle, low] = length.to_be_bytes();
    Some([kind, high, middle, low])
}

/// Looks for a frame at the beginning of what has come so far.
pub fn read(bytes: &[u8]) -> Read {
    let Some(&[kind, high, middle, low]) = bytes.first_chunk::<HEADER>() else {
        return Read::Incomplete(HEADER);
    };
    let payload = u32::from_be_bytes([0, high, middle, low]) as usize;
    if bytes.len() < HEADER + payload {
        return Read::Incomplete(HEADER + payload);
    }
    Read::Frame { kind, payload }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds() {
        assert_eq!(header(2, 0), Some([2, 0, 0, 0]));
        assert_eq!(header(0, 0x01_02_03), Some([0, 1, 2, 3]));
        assert_eq!(header(9, MAX_PAYLOAD), Some([9, 255, 255, 255]));
        assert_eq!(header(1, MAX_PAYLOAD + 1), None);
        assert_eq!(header(1, usize::MAX), None);
    }

    proptest! {
        #[test]
        fn a_frame_is_read_however_it_is_cut(
            kind: u8,
            payload in proptest::collection::vec(any::<u8>(), 0..600),
            behind in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut bytes = header(kind, payload.len()).expect("a small payload").to_vec();
            bytes.extend_from_slice(&payload);
            let whole = bytes.len();
            for cut in 0..whole {
                let expected = if cut < HEADER { HEADER } else { whole };
                prop_assert_eq!(read(&bytes[..cut]), Read::Incomplete(expected));
            }
            bytes.extend_from_slice(&behind);
            prop_assert_eq!(read(&bytes), Read::Frame { kind, payload: payload.len() });
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            match read(&bytes) {
                Read::Incomplete(least) => prop_assert!(bytes.len() < least && least <= HEADER + MAX_PAYLOAD),
                Read::Frame { payload, .. } => prop_assert!(HEADER + payload <= bytes.len()),
            }
        }
    }
}
