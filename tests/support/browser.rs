//! What a browser does that matters to logins: it keeps cookies, follows redirects and sends forms.
//!
//! As in a browser, cookies belong to a host and a path and not to a port.

use super::client::{Request, Response};

/// The most redirects in a row.
const MOST_REDIRECTS: usize = 20;

/// A browser with its cookie jar.
#[derive(Default)]
pub struct Browser {
    cookies: Vec<Cookie>,
}

#[derive(Clone, Debug)]
struct Cookie {
    name: String,
    value: String,
    path: String,
}

/// Where a walk ended.
pub struct Page {
    /// The address, as a browser shows it.
    pub url: Url,
    /// What is there.
    pub response: Response,
}

/// An address on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Url {
    /// The port.
    pub port: u16,
    /// Path and query.
    pub target: String,
}

impl Url {
    /// `http://127.0.0.1:80/x`, or `/x` on the host of `self`.
    #[track_caller]
    pub fn join(&self, location: &str) -> Url {
        match location.strip_prefix("http://127.0.0.1:") {
            Some(rest) => {
                let (port, path) = rest.split_once('/').unwrap_or((rest, ""));
                Url { port: port.parse().expect(location), target: format!("/{path}") }
            }
            None => {
                assert!(location.starts_with('/'), "not an address of this machine: {location}");
                Url { port: self.port, target: location.to_owned() }
            }
        }
    }

    /// What stands before the `?`.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// An argument of the query, decoded.
    pub fn argument(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(other, _)| *other == name).map(|(_, value)| decoded(value)).next()
    }
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap_or("0"), 16).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Browser {
    /// One request, without following anything.
    #[track_caller]
    pub fn send(&mut self, method: &str, url: &Url, edit: impl FnOnce(Request) -> Request) -> Response {
        let mut request = Request::new(url.port, method, &url.target);
        let cookies = self.cookies_for(url.path());
        if !cookies.is_empty() {
            request = request.header("Cookie", &cookies);
        }
        let response = edit(request).send();
        for cookie in response.all("set-cookie") {
            self.keep(cookie);
        }
        response
    }

    /// One GET, without following anything.
    #[track_caller]
    pub fn get(&mut self, url: &Url) -> Response {
        self.send("GET", url, |request| request)
    }

    /// GET, and wherever that leads.
    #[track_caller]
    pub fn visit(&mut self, url: &Url) -> Page {
        let response = self.get(url);
        self.follow(url.clone(), response)
    }

    /// Goes where a response leads.
    #[track_caller]
    pub fn follow(&mut self, mut url: Url, mut response: Response) -> Page {
        for _ in 0..MOST_REDIRECTS {
            if !matches!(response.status, 301 | 302 | 303 | 307) {
                return Page { url, response };
            }
            url = url.join(response.header("location").expect("a redirect says where to"));
            response = self.get(&url);
        }
        panic!("redirected in circles, last to {url:?}");
    }

    /// Sends the form of a page with these fields, and goes where that leads.
    #[track_caller]
    pub fn submit(&mut self, page: &Page, fields: &str) -> Page {
        let text = page.response.text();
        let action = text.split("action=\"").nth(1).and_then(|rest| rest.split('"').next());
        let url = page.url.join(action.unwrap_or_else(|| panic!("no form in {:?}: {text}", page.url)));
        let response = self.send("POST", &url, |request| {
            request.header("Content-Type", "application/x-www-form-urlencoded").body(fields)
        });
        self.follow(url, response)
    }

    /// Values of the cookies whose names begin so, by name.
    pub fn cookies(&self, start: &str) -> Vec<(String, String)> {
        let named = self.cookies.iter().filter(|cookie| cookie.name.starts_with(start));
        named.map(|cookie| (cookie.name.clone(), cookie.value.clone())).collect()
    }

    /// Puts a value in the place of a cookie.
    pub fn set_cookie(&mut self, name: &str, value: &str) {
        self.keep(&format!("{name}={value}; Path=/"));
    }

    fn cookies_for(&self, path: &str) -> String {
        let mut cookies: Vec<_> = self.cookies.iter().filter(|cookie| below(path, &cookie.path)).collect();
        cookies.sort_by_key(|cookie| std::cmp::Reverse(cookie.path.len()));
        cookies
            .iter()
            .map(|cookie| format!("{}={}", cookie.name, cookie.value))
            .collect::<Vec<_>>()
            .join("; ")
    }

    fn keep(&mut self, header: &str) {
        let mut parts = header.split(';').map(str::trim);
        let (name, value) = parts.next().and_then(|pair| pair.split_once('=')).expect("a cookie");
        let mut cookie = Cookie { name: name.to_owned(), value: value.to_owned(), path: "/".to_owned() };
        let mut gone = false;
        for part in parts {
            let (attribute, value) = part.split_once('=').unwrap_or((part, ""));
            match attribute.to_ascii_lowercase().as_str() {
                "path" => cookie.path = value.to_owned(),
                "max-age" => gone |= value == "0",
                "expires" => gone |= value.contains(" 1970 "),
                _ => {}
            }
        }
        self.cookies.retain(|other| other.name != cookie.name || other.path != cookie.path);
        if !gone {
            self.cookies.push(cookie);
        }
    }
}

/// RFC 6265 §5.1.4.
fn below(path: &str, cookie: &str) -> bool {
    path == cookie
        || path.strip_prefix(cookie).is_some_and(|rest| cookie.ends_with('/') || rest.starts_with('/'))
}
