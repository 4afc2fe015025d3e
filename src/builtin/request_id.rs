//! request-id: gives each request an id, or keeps the one it came with, and tells both sides.
//!
//! APISIX: plugins/request-id.lua.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;
use pingora::http::ResponseHeader;
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::header::Name;
use crate::plugin::{
    contract,
    env::BuildEnv,
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow},
};

/// As APISIX has it, the doubled G and the missing H included.
const CHAR_SET: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIGKLMNOPQRSTUVWXYZ0123456789";
const NANOID: &[u8; 64] = b"-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// A KSUID counts seconds from here.
const KSUID_EPOCH: u64 = 1_400_000_000;

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// The header that holds the id, of request and response.
    #[serde(default = "default_header")]
    pub header_name: String,
    /// Whether the response tells the id.
    #[serde(default = "default_include")]
    pub include_in_response: bool,
    /// How ids are made.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// Options of the algorithm `range_id`.
    #[serde(default)]
    pub range_id: RangeId,
}

/// How ids are made.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// A random UUID (RFC 9562 §5.4).
    #[default]
    Uuid,
    /// 21 characters of a cryptographic source.
    Nanoid,
    /// Characters of a set of one's own.
    RangeId,
    /// 27 characters that sort by second.
    Ksuid,
    /// A UUID that sorts by time (RFC 9562 §5.7).
    Uuidv7,
}

/// Options of the algorithm `range_id`.
#[derive(Deserialize)]
#[serde(default)]
pub struct RangeId {
    /// Characters of an id.
    pub length: usize,
    /// What they are taken from.
    pub char_set: String,
}

impl Default for RangeId {
    fn default() -> Self {
        Self { length: 16, char_set: CHAR_SET.into() }
    }
}

fn default_header() -> String {
    "X-Request-Id".into()
}

fn default_include() -> bool {
    true
}

/// The compiled configuration.
pub struct Plugin {
    header: Name,
    include_in_response: bool,
    algorithm: Algorithm,
    length: usize,
    char_set: Box<[char]>,
}

/// The id of this request, kept for the response.
#[derive(Default)]
struct Given(Option<HeaderValue>);

impl contract::Plugin for Plugin {
    const NAME: &'static str = "request-id";
    const PRIORITY: i32 = 12015;
    const PHASES: Phases = Phases::REWRITE.and(Phases::HEADER_FILTER);
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "header_name": {"type": "string", "default": "X-Request-Id"},
                "include_in_response": {"type": "boolean", "default": true},
                "algorithm": {
                    "type": "string",
                    "enum": ["uuid", "nanoid", "range_id", "ksuid", "uuidv7"],
                    "default": "uuid"
                },
                "range_id": {
                    "type": "object",
                    "properties": {
                        "length": {"type": "integer", "minimum": 6, "default": 16},
                        "char_set": {"type": "string", "minLength": 6, "default": CHAR_SET}
                    },
                    "default": {"length": 16, "char_set": CHAR_SET}
                }
            }
        })
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let char_set = config.range_id.char_set;
        if HeaderValue::from_bytes(char_set.as_bytes()).is_err() {
            return Err("range_id.char_set has characters that cannot stand in a header".into());
        }
        Ok(Self {
            header: Name::parse(&config.header_name)
                .ok_or_else(|| "header_name is no name of a header".to_owned())?,
            include_in_response: config.include_in_response,
            algorithm: config.algorithm,
            length: config.range_id.length,
            char_set: char_set.chars().collect(),
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        let came = x.session.req_header().headers.get(&self.header.key).filter(|value| !value.is_empty());
        let value = match came {
            Some(value) => value.clone(),
            None => {
                let id = self.make();
                let Ok(value) = HeaderValue::try_from(id) else { return CONTINUE };
                x.set_header(&self.header.key, value.clone());
                value
            }
        };
        x.ctx.request_id = Some(String::from_utf8_lossy(value.as_bytes()).into());
        if self.include_in_response {
            x.local::<Given>().0 = Some(value);
        }
        CONTINUE
    }

    fn header_filter(&self, x: &mut Exchange<'_>, head: &mut ResponseHeader) {
        let Some(given) = x.take_local::<Given>().and_then(|given| given.0) else { return };
        if head.headers.get(&self.header.key).is_none_or(HeaderValue::is_empty) {
            // Fails only beyond the 32,768 distinct names a header map can hold: then the id stays out.
            let _ = head.insert_header(self.header.letters.clone(), given);
        }
    }
}

impl Plugin {
    fn make(&self) -> String {
        match self.algorithm {
            Algorithm::Uuid => uuid(4, fastrand::u128(..)),
            Algorithm::Uuidv7 => uuid_v7(),
            Algorithm::Nanoid => nanoid(),
            Algorithm::Ksuid => ksuid(now().as_secs(), fastrand::u128(..)),
            Algorithm::RangeId => {
                (0..self.length).filter_map(|_| fastrand::choice(self.char_set.iter().copied())).collect()
            }
        }
    }
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Writes 128 bits as a UUID of a version (RFC 9562 §4).
fn uuid(version: u128, bits: u128) -> String {
    let bits = bits & !(0xF << 76) & !(0b11 << 62) | (version << 76) | (0b10 << 62);
    let part = |shift: u32, digits: u32| (bits >> shift) & ((1_u128 << (4 * digits)) - 1);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        part(96, 8),
        part(80, 4),
        part(64, 4),
        part(48, 4),
        part(0, 12)
    )
}

/// Milliseconds, then a count of 18 bits that keeps the ids of this process in order, then chance.
fn uuid_v7() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    // 46 bits of milliseconds last until the year 4199. A fresh millisecond begins with a random lower half.
    let fresh = (now().as_millis() as u64) << 18 | u64::from(fastrand::u32(..1 << 17));
    let next = |last: u64| Some(if fresh > last { fresh } else { last + 1 });
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
    let stamp = next(last).unwrap_or_default();
    let (millis, count) = (u128::from(stamp >> 18), u128::from(stamp & 0x3FFFF));
    let bits =
        millis << 80 | (count >> 6) << 64 | (count & 0x3F) << 56 | u128::from(fastrand::u64(..1 << 56));
    uuid(7, bits)
}

fn nanoid() -> String {
    let mut bytes = [0; 21];
    if getrandom::fill(&mut bytes).is_err() {
        // An id is no secret: better a weaker one than none.
        fastrand::fill(&mut bytes);
    }
    bytes.iter().map(|byte| char::from(NANOID[usize::from(byte & 63)])).collect()
}

/// Four bytes of seconds and sixteen of chance, as 27 digits of base 62.
fn ksuid(seconds: u64, chance: u128) -> String {
    let mut number = [0_u8; 20];
    number[..4].copy_from_slice(&(seconds.saturating_sub(KSUID_EPOCH) as u32).to_be_bytes());
    number[4..].copy_from_slice(&chance.to_be_bytes());
    let mut digits = [b'0'; 27];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 62) as u8;
            rest = value % 62;
        }
        *digit = BASE62[rest as usize];
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plugin::testing::{self, Kit};

    #[track_caller]
    fn shape(algorithm: &str, pattern: &str) {
        let plugin: Plugin = testing::plugin(json!({"algorithm": algorithm}));
        let ids: Vec<String> = (0..50).map(|_| plugin.make()).collect();
        let pattern = regex::Regex::new(pattern).unwrap();
        ids.iter().for_each(|id| assert!(pattern.is_match(id), "{id} of {algorithm}"));
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{algorithm}");
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn ids_have_the_shape_of_their_algorithm() {
        shape("uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$");
        shape("uuidv7", "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$");
        shape("nanoid", "^[-_0-9a-zA-Z]{21}$");
        shape("ksuid", "^[0-9a-zA-Z]{27}$");
        shape("range_id", "^[0-9a-zA-Z]{16}$");
        let own: Plugin = testing::plugin(
            json!({"algorithm": "range_id", "range_id": {"length": 6, "char_set": "xyzxyz"}}),
        );
        assert!(own.make().chars().all(|c| "xyz".contains(c)) && own.make().len() == 6);
    }

    #[test]
    fn known_ids() {
        // The example of the KSUID specification.
        let chance = 0xB5A1_CD34_B5F9_9D11_54FB_6853_345C_9735;
        assert_eq!(ksuid(107_608_047 + KSUID_EPOCH, chance), "0ujtsYcgvSTl8PAuAdqWYSMnLOv");
        assert_eq!(uuid(4, 0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(7, u128::MAX), "ffffffff-ffff-7fff-bfff-ffffffffffff");
    }

    #[test]
    fn uuids_of_version_7_are_in_order() {
        let ids: Vec<String> = (0..1000).map(|_| uuid_v7()).collect();
        assert!(ids.is_sorted() && ids.first() != ids.last());
    }

    /// What came in, what the upstream would get, and what the response tells.
    #[track_caller]
    fn check(
        conf: Value,
        came: Option<&str>,
        answered: &[(&str, &str)],
        told: impl Fn(&str, Option<&str>) -> bool,
    ) {
        let plugin: Plugin = testing::plugin(conf);
        let headers: Vec<_> = came.iter().map(|value| ("X-Request-Id", *value)).collect();
        Kit::get("/", &headers).run(async |x| {
            assert_eq!(testing::answer(&contract::Plugin::rewrite(&plugin, x).await), "continue");
            let id = x.ctx.request_id.clone().expect("an id");
            let mut head = testing::response(200, answered);
            contract::Plugin::header_filter(&plugin, x, &mut head);
            let response = head.headers.get(&plugin.header.key).map(|value| value.to_str().unwrap());
            assert_eq!(x.header(&plugin.header.key), Some(&*id));
            assert!(told(&id, response), "{id} {response:?}");
        });
    }

    #[test]
    fn tells_both_sides() {
        check(json!({}), None, &[], |id, told| id.len() == 36 && told == Some(id));
        check(json!({}), Some("mine"), &[], |id, told| id == "mine" && told == Some("mine"));
        check(json!({}), Some(""), &[], |id, told| id.len() == 36 && told == Some(id));
        check(json!({"include_in_response": false}), Some("mine"), &[], |id, told| {
            id == "mine" && told.is_none()
        });
        check(json!({}), None, &[("X-Request-Id", "theirs")], |id, told| {
            id.len() == 36 && told == Some("theirs")
        });
        check(json!({}), Some("mine"), &[("X-Request-Id", "")], |_, told| told == Some("mine"));
        check(json!({"header_name": "X-Id"}), Some("mine"), &[], |id, told| {
            id.len() == 36 && told == Some(id)
        });
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert!(refusal(json!({"algorithm": "snowflake"})).contains("algorithm"));
        assert_eq!(refusal(json!({"header_name": "a b"})), "header_name is no name of a header");
        assert_eq!(
            refusal(json!({"range_id": {"length": 5}})),
            "property \"range_id\" validation failed: property \"length\" validation failed: expected 5 to be at least 6"
        );
    }

    proptest! {
        #[test]
        fn ksuids_sort_by_time(a in KSUID_EPOCH..5_000_000_000, b in KSUID_EPOCH..5_000_000_000, c: u128, d: u128) {
            prop_assume!(a < b);
            prop_assert!(ksuid(a, c) < ksuid(b, d));
        }
    }
}
