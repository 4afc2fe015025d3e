//! Uri patterns: a pattern without sigils matches itself, a match is by a pattern of the rule, values are parts of the
//! path, and a router from which all is removed is empty.

use std::{net::IpAddr, sync::Arc};

use portcullis::snapshot::router::{Accept, Found, MethodSet, Mode, Request, Router, Rule};

struct Path<'p>(&'p str);

impl Request for Path<'_> {
    fn method(&self) -> MethodSet {
        MethodSet::from_name("GET")
    }
    fn remote_addr(&self) -> IpAddr {
        IpAddr::from([127, 0, 0, 1])
    }
    fn host(&self) -> &[u8] {
        b"a.com"
    }
    fn http_host(&self) -> &[u8] {
        b"a.com"
    }
    fn path(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Routes the first line by patterns: each of the lines that follow.
pub fn run(data: &[u8]) {
    let Some((path, patterns)) = crate::lines(data) else { return };
    let patterns: Vec<&str> = patterns.lines().take(8).filter(|text| text.len() < 200).collect();
    for mode in [Mode::HostUri, Mode::Uri, Mode::UriWithParameter] {
        let mut router = Router::new(mode);
        let rules: Vec<_> = patterns.iter().map(|text| Arc::new(Rule::new(*text, [text], ()))).collect();
        rules.iter().for_each(|rule| router.insert(rule.clone()));
        let found = router.find(&Path(path), |()| Accept::Yes);
        if let Found::Match(found) = &found {
            assert!(patterns.contains(&found.path), "{}", found.path);
            let values = found.params.iter(path.as_bytes());
            assert!(values.into_iter().all(|(_, value)| value.len() <= path.len()));
        }
        let literal = !path.contains([':', '*']) && path.len() < 200;
        assert!(matches!(found, Found::Match(_)) || !literal || !patterns.contains(&path), "{path}");
        rules.iter().for_each(|rule| router.remove(rule));
        assert!(router.is_empty());
    }
}
