//! A server that speaks wolf's API for gateways, as iGeeky/wolf 0.5 does: the same paths, statuses and JSON.
//!
//! One application, `app`; `admin` and `ann` may do everything in it, `guest` may read. `/broken` is a resource over which the
//! server itself fails, `/nonsense` one whose answer is no JSON.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::upstream::{Seen, Upstream, Wire};

/// The running server. It ends when it is dropped.
pub struct Wolf {
    server: Upstream,
    users: Arc<Mutex<Vec<User>>>,
}

struct User {
    id: u32,
    name: &'static str,
    nickname: &'static str,
    password: String,
    token: Option<String>,
    /// Whether every action is allowed; else only GET.
    manager: bool,
}

impl Wolf {
    /// Starts it.
    pub fn start() -> Self {
        let user = |id, name, nickname, password: &str, manager| User {
            id,
            name,
            nickname,
            password: password.into(),
            token: None,
            manager,
        };
        let users = vec![
            user(100, "admin", "the administrator", "123456", true),
            user(101, "guest", "", "123456", false),
            user(102, "ann", "Ann", "correct-horse", true),
        ];
        let users = Arc::new(Mutex::new(users));
        let known = users.clone();
        let server = Upstream::with(move |seen, wire| answer(&mut known.lock().unwrap(), seen, wire));
        Self { server, users }
    }

    /// Its address, as a consumer names it.
    pub fn address(&self) -> String {
        format!("http://{}", self.server.node())
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// How often it was asked about a path.
    pub fn asked(&self, path: &str) -> usize {
        self.server.seen().iter().filter(|seen| seen.target.split('?').next() == Some(path)).count()
    }

    /// The newest question.
    pub fn last(&self) -> Seen {
        self.server.last()
    }

    /// Logs everybody out.
    pub fn forget_tokens(&self) {
        for user in self.users.lock().unwrap().iter_mut() {
            user.token = None;
        }
    }
}

fn answer(users: &mut [User], seen: &Seen, wire: &mut Wire<'_>) {
    let path = seen.target.split('?').next().unwrap_or_default();
    let (status, body) = match (seen.method.as_str(), path) {
        ("POST", "/wolf/rbac/login.rest") => (200, login(users, seen)),
        (_, "/wolf/rbac/access_check" | "/wolf/rbac/user_info" | "/wolf/rbac/change_pwd") => {
            // wolf's middleware: whoever has no token is told so before anything else.
            let token = seen.header("x-rbac-token").unwrap_or_default();
            match users.iter_mut().find(|user| user.token.as_deref() == Some(token)) {
                None => (401, json!({"ok": false, "reason": "ERR_TOKEN_INVALID", "errmsg": "TOKEN INVALID"})),
                Some(user) => known(user, path, seen),
            }
        }
        _ => (404, json!({"ok": false, "reason": "ERR_METHOD_INVALID"})),
    };
    let json = [("Content-Type", "application/json; charset=utf-8")];
    match body {
        Value::String(text) => wire.answer(status, &[], text.as_bytes()),
        body => wire.answer(status, &json, body.to_string().as_bytes()),
    }
}

fn login(users: &mut [User], seen: &Seen) -> Value {
    let Ok(arguments) = serde_json::from_slice::<Value>(&seen.body) else { return failed("ERR_ARGS_ERROR") };
    let argument = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (name, password) = (argument("username"), argument("password"));
    if name.is_empty() {
        return failed("ERR_USERNAME_MISSING");
    }
    if password.is_empty() {
        return failed("ERR_PASSWORD_MISSING");
    }
    if argument("appid") != "app" {
        return failed("ERR_APPID_NOT_FOUND");
    }
    let Some(user) = users.iter_mut().find(|user| user.name == name) else {
        return failed("ERR_USER_NOT_FOUND");
    };
    if user.password != password {
        return failed("ERR_PASSWORD_ERROR");
    }
    let token = format!("token-of-{name}");
    user.token = Some(token.clone());
    json!({"ok": true, "reason": "", "data": {"userInfo": info(user), "token": token}})
}

fn known(user: &mut User, path: &str, seen: &Seen) -> (u16, Value) {
    match path {
        "/wolf/rbac/user_info" => (200, json!({"ok": true, "reason": "", "data": {"userInfo": info(user)}})),
        "/wolf/rbac/change_pwd" => (200, change_password(user, seen)),
        _ => check(user, &seen.target),
    }
}

fn change_password(user: &mut User, seen: &Seen) -> Value {
    let arguments: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    let argument = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    match (argument("oldPassword"), argument("newPassword")) {
        (old, _) if old.is_empty() => failed("ERR_OLD_PASSWORD_REQUIRED"),
        (_, new) if new.is_empty() => failed("ERR_NEW_PASSWORD_REQUIRED"),
        (old, _) if old != user.password => failed("ERR_OLD_PASSWORD_INCORRECT"),
        (_, new) => {
            user.password = new;
            json!({"ok": true, "reason": "", "data": {}})
        }
    }
}

fn check(user: &User, target: &str) -> (u16, Value) {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let argument = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let (Some(resource), Some(action), Some("app")) =
        (argument("resName"), argument("action"), argument("appID"))
    else {
        return (400, json!({"ok": false, "reason": "ERR_ARGS_ERROR"}));
    };
    let data = json!({"userInfo": info(user)});
    match resource {
        "%2Fbroken" => (500, json!({"ok": false, "reason": "ERR_SERVER_ERROR"})),
        // Whatever wolf did not foresee it answers with 200.
        "%2Funforeseen" => (200, json!({"ok": false, "reason": "ERR_SERVER_ERROR"})),
        "%2Fnonsense" => (200, json!("this is no JSON")),
        _ if user.manager || action == "GET" => (200, json!({"ok": true, "reason": "", "data": data})),
        _ => (403, json!({"ok": false, "reason": "Access failure", "data": data})),
    }
}

fn info(user: &User) -> Value {
    let nickname = if user.nickname.is_empty() { Value::Null } else { user.nickname.into() };
    json!({"id": user.id, "username": user.name, "nickname": nickname})
}

fn failed(reason: &str) -> Value {
    json!({"ok": false, "reason": reason, "data": {}})
}
