//! Debian's Chromium without a window, driven as WebDriver (W3C) has it: what no client of ours can stand in for.
//!
//! chromedriver starts the browser and ends it. Both keep their files in a directory of the test.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Connection, Request};

/// The longest that a browser may take for anything, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(120);

/// The running browser. It ends when it is dropped.
pub struct Chromium {
    port: u16,
    session: String,
    driver: Child,
    home: TempDir,
}

impl Chromium {
    /// Starts it with an empty profile.
    #[track_caller]
    pub fn start() -> Self {
        let home = tempfile::Builder::new().prefix("portcullis-chromium-").tempdir().expect("a directory");
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", home.path())
            .env("TMPDIR", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("chromedriver cannot be run ({e}): `make test` installs what tests need")
            });
        let output = BufReader::new(driver.stdout.take().expect("it is a pipe"));
        let mut port = None;
        let mut lines = output.lines().map_while(Result::ok);
        for line in lines.by_ref() {
            let told = line.split("started successfully on port ").nth(1);
            port = told.and_then(|rest| rest.trim_end_matches('.').parse().ok());
            if port.is_some() {
                break;
            }
        }
        // It says more later on, and must not wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser =
            Self { port: port.expect("chromedriver says its port"), session: String::new(), driver, home };
        let profile = format!("--user-data-dir={}", browser.home.path().join("profile").display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            // The provider's pages name a font of a server far away.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            &profile,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "timeouts": {"pageLoad": PATIENCE.as_millis() as u64, "implicit": 0},
        }}});
        let made = browser.call("POST", "/session", Some(wanted));
        browser.session = made["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    fn try_call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, String> {
        let mut request = Request::new(self.port, method, path);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let mut connection = Connection::try_open(self.port).map_err(|e| e.to_string())?;
        let response = connection.raw(&request.wire()).try_response_within(PATIENCE);
        let response = response.map_err(|e| e.to_string())?;
        let value = response.json()["value"].clone();
        match response.status {
            200 => Ok(value),
            _ => Err(value.to_string()),
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/session/{}{rest}", self.session)
    }

    /// Goes to an address; comes back when the page is there, wherever that led.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.call("POST", &self.path("/url"), Some(json!({ "url": url })));
    }

    /// The address that it shows.
    #[track_caller]
    pub fn url(&self) -> String {
        self.call("GET", &self.path("/url"), None).as_str().expect("an address").to_owned()
    }

    /// What a script in the page gives.
    #[track_caller]
    pub fn script(&self, script: &str) -> Value {
        self.call("POST", &self.path("/execute/sync"), Some(json!({"script": script, "args": []})))
    }

    /// The page's text.
    #[track_caller]
    pub fn text(&self) -> String {
        self.script("return document.body ? document.body.innerText : ''")
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    fn element(&self, selector: &str) -> Result<String, String> {
        let wanted = json!({"using": "css selector", "value": selector});
        let found = self.try_call("POST", &self.path("/element"), Some(wanted))?;
        let id = found.as_object().and_then(|members| members.values().next()).and_then(Value::as_str);
        id.map(str::to_owned).ok_or_else(|| found.to_string())
    }

    /// Types into a field.
    #[track_caller]
    pub fn type_into(&self, selector: &str, text: &str) {
        self.with(selector, "/value", json!({ "text": text }));
    }

    /// Clicks on something.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        self.with(selector, "/click", json!({}));
    }

    /// Does something to an element as soon as it is there.
    #[track_caller]
    fn with(&self, selector: &str, action: &str, arguments: Value) {
        self.until(selector, || {
            let element = self.element(selector)?;
            let path = self.path(&format!("/element/{element}{action}"));
            self.try_call("POST", &path, Some(arguments.clone()))
        });
    }

    /// Waits until the address begins so.
    #[track_caller]
    pub fn arrives_at(&self, start: &str) {
        self.until(start, || match self.url() {
            url if url.starts_with(start) => Ok(Value::Null),
            url => Err(url),
        });
    }

    #[track_caller]
    fn until(&self, what: &str, mut attempt: impl FnMut() -> Result<Value, String>) {
        let begun = Instant::now();
        while let Err(error) = attempt() {
            assert!(
                begun.elapsed() < PATIENCE,
                "the browser waited in vain for {what} at {}: {error}\n{}",
                self.url(),
                self.text()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The cookies of the page that is shown.
    #[track_caller]
    pub fn cookies(&self) -> Vec<Value> {
        self.call("GET", &self.path("/cookie"), None).as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The driver ends the browser; without it nobody would.
        if !self.session.is_empty() {
            let _ = self.try_call("DELETE", &self.path(""), None);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
