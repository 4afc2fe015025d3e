use proptest::prelude::*;

use super::*;
use crate::plugin::{
    contract::Plugin as _,
    testing::{self, Kit, Setup},
};

#[test]
fn schemas_compile() {
    testing::compile_schemas::<Plugin>();
}

#[track_caller]
fn check_refused(conf: Value, expected: &str) {
    assert_eq!(testing::refusal::<Plugin>(conf), expected);
}

#[test]
fn wrong_configurations() {
    let none = "value should match only one schema, but matches none";
    let property = |name: &str| format!("property \"{name}\" validation failed: {none}");
    check_refused(json!({}), none);
    check_refused(json!({"time_window": 60, "key": "remote_addr"}), none);
    check_refused(json!({"count": 0, "time_window": 60}), &property("count"));
    check_refused(json!({"count": 2, "time_window": 0}), &property("time_window"));
    check_refused(json!({"count": 2, "time_window": 1.5}), &property("time_window"));
    check_refused(
        json!({"count": 2, "time_window": 60, "rejected_msg": ""}),
        "property \"rejected_msg\" validation failed: string too short, expected at least 1, got 0",
    );
    let rule = |key: &str| json!({"count": 1, "time_window": 1, "key": key});
    check_refused(json!({"count": 1, "time_window": 1, "rules": [rule("$a")]}), BOTH);
    check_refused(json!({"count": 1, "rules": [rule("$a")]}), BOTH);
    check_refused(json!({"count": 0, "rules": [rule("$a")]}), BOTH);
    check_refused(
        json!({"group": "g", "rules": [rule("$a")]}),
        "group and rules cannot be specified at the same time",
    );
    check_refused(
        json!({"rules": [rule("${http_company}"), rule("$b"), rule("${http_company}")]}),
        "duplicate key '${http_company}' in rules",
    );
}

#[test]
fn redis_is_checked_as_in_apisix_and_then_refused() {
    let redis = |more: Value| {
        let mut conf = json!({"count": 2, "time_window": 60, "policy": "redis"});
        conf.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        testing::refusal::<Plugin>(conf)
    };
    assert_eq!(redis(json!({})), "then clause did not match");
    let host = "127.0.0.1";
    let small = json!({"redis_host": host, "sync_interval": 0.05});
    assert_eq!(redis(small), "sync_interval should not be smaller than 0.1");
    let large = json!({"redis_host": host, "sync_interval": 60});
    assert_eq!(redis(large), "sync_interval should be smaller than time_window");
    assert!(redis(json!({"redis_host": host})).contains("use \"policy\": \"local\""));
}

/// Status and the three headers of one request; empty ones are not there.
fn ask(plugin: &Plugin, kit: &Kit) -> [String; 4] {
    ask_with(plugin, kit, "x-ratelimit-")
}

fn ask_with(plugin: &Plugin, kit: &Kit, prefix: &str) -> [String; 4] {
    kit.run(async |x| {
        let flow = plugin.access(x).await;
        let header =
            |name| testing::response_header(&flow, x, &format!("{prefix}{name}")).unwrap_or_default();
        [testing::answer(&flow), header("limit"), header("remaining"), header("reset")]
    })
}

#[test]
fn counts_and_tells() {
    let plugin = testing::plugin::<Plugin>(json!({"count": 2, "time_window": 60, "rejected_code": 429}));
    let kit = Kit::get("/", &[]);
    assert_eq!(ask(&plugin, &kit), ["continue", "2", "1", "60"]);
    let [answer, limit, remaining, reset] = ask(&plugin, &kit);
    assert_eq!([&*answer, &limit, &remaining], ["continue", "2", "0"]);
    assert!((0.0..=60.0).contains(&reset.parse::<f64>().unwrap()), "{reset}");
    for _ in 0..2 {
        let [answer, limit, remaining, _] = ask(&plugin, &kit);
        assert_eq!([&*answer, &limit, &remaining], ["429", "2", "0"]);
    }
    assert_eq!(ask(&plugin, &kit.client("10.1.1.1"))[0], "continue");
}

#[test]
fn headers_and_message_are_optional() {
    let conf =
        json!({"count": 1, "time_window": 60, "show_limit_quota_header": false, "rejected_msg": "slow"});
    let plugin = testing::plugin::<Plugin>(conf);
    let kit = Kit::get("/", &[]);
    assert_eq!(ask(&plugin, &kit), ["continue", "", "", ""]);
    assert_eq!(ask(&plugin, &kit), [r#"503 {"error_msg":"slow"}"#, "", "", ""]);
}

#[test]
fn headers_have_the_letters_of_their_configuration() {
    let plugin = testing::plugin::<Plugin>(json!({"count": 2, "time_window": 60}));
    Kit::get("/", &[]).run(async |x| {
        let _ = plugin.access(x).await;
        let letters: Vec<_> =
            x.ctx.response_headers.iter().filter_map(|field| field.letters.clone()).collect();
        assert_eq!(letters, ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]);
    });
}

#[test]
fn metadata_names_the_headers() {
    let setup =
        Setup::new().metadata(json!({"limit_header": "X-Quota", "reset_header": "Y-RateLimit-Reset"}));
    let plugin: Plugin = setup.build(json!({"count": 2, "time_window": 60})).unwrap();
    let letters: Vec<_> =
        plugin.rules.iter().flat_map(|rule| &rule.headers).map(|header| &header.letters[..]).collect();
    assert_eq!(letters, [&b"X-Quota"[..], b"X-RateLimit-Remaining", b"Y-RateLimit-Reset"]);
    let setup = Setup::new().metadata(json!({"limit_header": "no header"}));
    assert!(setup.build::<Plugin>(json!({"count": 2, "time_window": 60})).is_err());
}

#[test]
fn numbers_from_the_request() {
    let conf = json!({"count": "${http_count ?? 2}", "time_window": "${http_window ?? 5}"});
    let plugin = testing::plugin::<Plugin>(conf.clone());
    let with = |headers: &[(&str, &str)]| ask(&plugin, &Kit::get("/", headers));
    assert_eq!(with(&[]), ["continue", "2", "1", "5"]);
    assert_eq!(with(&[("count", "5")])[..3], ["continue", "5", "3"].map(str::to_owned));
    assert_eq!(with(&[])[..3], ["503", "2", "0"].map(str::to_owned));
    // The refused request counted too.
    assert_eq!(with(&[("count", "5")])[..3], ["continue", "5", "1"].map(str::to_owned));
    for bad in ["0", "-5", "1.5", "x", ""] {
        assert_eq!(with(&[("count", bad)])[0], "500", "{bad}");
        assert_eq!(with(&[("window", bad)])[0], "500", "{bad}");
    }
    let mut lenient = conf;
    lenient["allow_degradation"] = json!(true);
    let lenient = testing::plugin::<Plugin>(lenient);
    assert_eq!(ask(&lenient, &Kit::get("/", &[("count", "0")])), ["continue", "", "", ""]);
}

#[test]
fn several_rules() {
    let plugin = testing::plugin::<Plugin>(json!({"rejected_code": 429, "rules": [
        {"count": 1, "time_window": 10, "key": "${http_user}"},
        {"count": "${http_count ?? 3}", "time_window": 20, "key": "${http_project}", "header_prefix": "P"}
    ]}));
    let with = |headers: &[(&str, &str)], prefix| ask_with(&plugin, &Kit::get("/", headers), prefix);
    assert_eq!(with(&[], "x-1-ratelimit-")[0], "500");
    assert_eq!(with(&[("user", "jack")], "x-1-ratelimit-"), ["continue", "1", "0", "10"]);
    assert_eq!(with(&[("project", "a")], "x-p-ratelimit-"), ["continue", "3", "2", "20"]);
    let both = [("user", "jack"), ("project", "a")];
    // The first rule refuses before the second counts.
    assert_eq!(with(&both, "x-1-ratelimit-")[..3], ["429", "1", "0"].map(str::to_owned));
    assert_eq!(with(&[("project", "a")], "x-p-ratelimit-")[2], "1");
    assert_eq!(with(&[("project", "a"), ("count", "0")], "x-p-ratelimit-")[0], "500");
}

#[test]
fn a_group_counts_together() {
    let conf = json!({"count": 2, "time_window": 60, "group": "g", "key": "all", "key_type": "constant"});
    let setup = Setup::new();
    let first: Plugin = setup.build(conf.clone()).unwrap();
    let setup = setup.origin("route", "2");
    let second: Plugin = setup.build(conf.clone()).unwrap();
    let kit = Kit::get("/", &[]);
    assert_eq!(
        [&first, &second, &first].map(|plugin| ask(plugin, &kit)[0].clone()),
        ["continue", "continue", "503"]
    );
    let mut other = conf;
    other["count"] = json!(3);
    assert_eq!(setup.build::<Plugin>(other.clone()).err().as_deref(), Some("group conf mismatched"));
    drop((first, second));
    assert!(setup.build::<Plugin>(other).is_ok());
}

#[test]
fn a_changed_configuration_begins_anew() {
    let setup = Setup::new();
    let kit = Kit::get("/", &[]);
    for (count, expected) in [(1, "continue"), (1, "503"), (2, "continue"), (1, "503")] {
        let plugin: Plugin = setup.build(json!({"count": count, "time_window": 60})).unwrap();
        assert_eq!(ask(&plugin, &kit)[0], expected);
    }
    let setup = setup.origin("consumer", "jack");
    let own: Plugin = setup.build(json!({"count": 1, "time_window": 60})).unwrap();
    assert_eq!(ask(&own, &kit)[0], "continue");
}

#[test]
fn the_body_is_read_when_the_key_is_in_it() {
    let plugin = testing::plugin::<Plugin>(json!({"count": 1, "time_window": 60, "key": "post_arg_user"}));
    let form = |body| Kit::post("/", "application/x-www-form-urlencoded", body);
    assert_eq!(ask(&plugin, &form("user=a"))[0], "continue");
    assert_eq!(ask(&plugin, &form("user=b"))[0], "continue");
    assert_eq!(ask(&plugin, &form("user=a"))[0], "503");
}

fn charge(count: u64, time_window: u64) -> Charge {
    Charge { key: 1, count, time_window }
}

#[test]
fn fixed_windows() {
    let counters = Windows::Fixed(Arc::default());
    let charge = charge(2, 10);
    let ask = |now| counters.incoming(&charge, now);
    assert_eq!(ask(1_000), Verdict { accepted: true, remaining: 1, reset: 10.0 });
    assert_eq!(ask(1_050), Verdict { accepted: true, remaining: 0, reset: 9.95 });
    assert_eq!(ask(10_999), Verdict { accepted: false, remaining: 0, reset: 0.001 });
    assert_eq!(ask(11_000), Verdict { accepted: true, remaining: 1, reset: 10.0 });
}

#[test]
fn sliding_windows() {
    let counters = Windows::Sliding(Arc::default());
    let charge = charge(4, 10);
    let ask = |now| counters.incoming(&charge, now);
    assert_eq!(ask(101_000), Verdict { accepted: true, remaining: 3, reset: 9.0 });
    for remaining in [2, 1, 0] {
        assert_eq!(ask(105_000), Verdict { accepted: true, remaining, reset: 5.0 });
    }
    assert_eq!(ask(105_004), Verdict { accepted: false, remaining: 0, reset: 5.0 });
    // The last window still weighs 4 * 8/10 = 3.2.
    assert_eq!(ask(112_000), Verdict { accepted: true, remaining: -1, reset: 8.0 });
    // 3.2 + 1 is too much until it weighs 3: in half a second.
    assert_eq!(ask(112_000), Verdict { accepted: false, remaining: 0, reset: 0.5 });
    assert!(ask(112_501).accepted);
    // Two windows later all is forgotten.
    assert_eq!(ask(130_000), Verdict { accepted: true, remaining: 3, reset: 10.0 });
}

#[track_caller]
fn check_hundredths(seconds: f64, expected: &str) {
    assert_eq!(hundredths(seconds), expected, "{seconds}");
}

#[test]
fn numbers_are_written_as_lua_does() {
    check_hundredths(12.0, "12");
    check_hundredths(11.957, "11.95");
    check_hundredths(11.9, "11.9");
    check_hundredths(0.05, "0.05");
    check_hundredths(0.001, "0");
    check_hundredths(9e15, "9e+15");
    assert_eq!(integer(10), "10");
    assert_eq!(integer(9_007_199_254_740_991), "9.007199254741e+15");
}

proptest! {
    #[test]
    fn a_fixed_window_admits_as_many_as_it_says(count in 1u64..20, time_window in 1u64..10, gaps in prop::collection::vec(0u64..3_000, 1..200)) {
        let counters = Windows::Fixed(Arc::default());
        let charge = charge(count, time_window);
        let (mut now, mut began, mut seen) = (5_000, None::<u64>, 0);
        for gap in gaps {
            now += gap;
            if began.is_none_or(|began| now >= began + time_window * 1000) {
                (began, seen) = (Some(now), 0);
            }
            seen += 1;
            prop_assert_eq!(counters.incoming(&charge, now).accepted, seen <= count);
        }
    }

    #[test]
    fn a_sliding_window_never_admits_more_than_the_count_per_window(count in 1u64..20, gaps in prop::collection::vec(0u64..900, 1..200)) {
        let counters = Windows::Sliding(Arc::default());
        let charge = charge(count, 5);
        let (mut now, mut admitted) = (50_000, HashMap::<u64, u64>::new());
        for gap in gaps {
            now += gap;
            if counters.incoming(&charge, now).accepted {
                *admitted.entry(now / 5_000).or_default() += 1;
            }
        }
        prop_assert!(admitted.values().all(|&admitted| admitted <= count));
    }
}
