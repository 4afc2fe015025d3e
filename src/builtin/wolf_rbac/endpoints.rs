//! The endpoints of wolf-rbac behind public-api: login, change of password, who am I.
//!
//! APISIX: plugins/wolf-rbac.lua `_M.api`. Invariant: passwords go to the server and nowhere else.

use serde_json::{Map, Value, json};

use super::{ARGUMENT, Credential, NAME, Token, token};
use crate::{
    builtin::shared::http_call::Call,
    net::args,
    plugin::{
        contract::PublicApi,
        exchange::Exchange,
        reply::{Class, Flow, Reply},
    },
};

const FAILED: &str = "request to wolf-server failed!";

pub(super) fn all() -> Vec<PublicApi> {
    vec![
        PublicApi {
            methods: &["POST"],
            path: "/apisix/plugin/wolf-rbac/login".into(),
            secret_args: &[],
            secret_bodies: true,
            handler: |x| Box::pin(async { flow(login(x).await) }),
        },
        PublicApi {
            methods: &["PUT"],
            path: "/apisix/plugin/wolf-rbac/change_pwd".into(),
            secret_args: &[ARGUMENT],
            secret_bodies: true,
            handler: |x| Box::pin(async { flow(change_password(x).await) }),
        },
        PublicApi {
            methods: &["GET"],
            path: "/apisix/plugin/wolf-rbac/user_info".into(),
            secret_args: &[ARGUMENT],
            secret_bodies: false,
            handler: |x| Box::pin(async { flow(user_info(x).await) }),
        },
    ]
}

fn flow(outcome: Result<Value, Reply>) -> Flow {
    match outcome {
        Ok(body) => Reply::json(200, body),
        Err(reply) => reply,
    }
    .into()
}

async fn login(x: &mut Exchange<'_>) -> Result<Value, Reply> {
    let arguments = arguments(x).await?;
    let appid = match arguments.get("appid") {
        None | Some(Value::Null) => return Err(Reply::message(400, "appid is missing")),
        Some(appid) => appid.as_str().unwrap_or_default().to_owned(),
    };
    let application = application(x, &appid)?;
    let call = Call::post(format!("{}/wolf/rbac/login.rest", application.server)).json(&arguments.into());
    let mut data = application.ask(call).await?;
    let Some(token) = data.get("token").and_then(Value::as_str) else {
        return Err(failed("the answer to a login has no token"));
    };
    let token = format!("V1#{appid}#{token}");
    Ok(json!({"rbac_token": token, "user_info": data.remove("userInfo")}))
}

async fn change_password(x: &mut Exchange<'_>) -> Result<Value, Reply> {
    let arguments = arguments(x).await?;
    let token = token(x)?;
    let application = application(x, token.appid())?;
    let call = Call::post(format!("{}/wolf/rbac/change_pwd", application.server)).json(&arguments.into());
    application.ask(call.headers(token.headers())).await?;
    Ok(json!({"message": "success to change password"}))
}

async fn user_info(x: &mut Exchange<'_>) -> Result<Value, Reply> {
    let token: Token = token(x)?;
    let application = application(x, token.appid())?;
    let call = Call::get(format!("{}/wolf/rbac/user_info", application.server)).headers(token.headers());
    let mut data = application.ask(call).await?;
    Ok(json!({"user_info": data.remove("userInfo")}))
}

/// The members of a JSON object, or of a form whatever its type.
async fn arguments(x: &mut Exchange<'_>) -> Result<Map<String, Value>, Reply> {
    let body = x.body().await?;
    if x.header("content-type").is_some_and(|kind| kind.contains("application/json")) {
        return serde_json::from_slice(&body).map_err(|error| {
            let reason =
                format!("the body is no JSON object at line {} column {}", error.line(), error.column());
            Reply::message(400, "invalid request").because(reason)
        });
    }
    let mut members: Map<String, Value> = Map::new();
    for (name, value) in args::pairs(&body) {
        let value = value.map_or(Value::Bool(true), |value| value.into_owned().into());
        match members.get_mut(&*name) {
            None => {
                members.insert(name.into_owned(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    Ok(members)
}

fn application<'a>(x: &Exchange<'a>, appid: &str) -> Result<&'a Credential, Reply> {
    if !x.world.has_any(NAME) {
        return Err(Reply::status(500).because("no consumer has wolf-rbac"));
    }
    let found = x.world.find(NAME, appid).and_then(|found| found.secret::<Credential>());
    found.ok_or_else(|| {
        Reply::message(400, "appid not found")
            .because(format!("appid [{appid}] not found"))
            .classed(Class::Unknown)
    })
}

impl Credential {
    /// The `data` of an answer that is a success. APISIX: `request_to_wolf_server`.
    async fn ask(&self, call: Call) -> Result<Map<String, Value>, Reply> {
        let answer = self.other.send(call).await.map_err(|error| failed(&error.to_string()))?;
        if answer.status != 200 {
            return Err(failed(&format!("the server answered {}", answer.status.as_u16())));
        }
        let mut body: Map<String, Value> = answer.json().map_err(|reason| failed(&reason))?;
        if body.get("ok") != Some(&Value::Bool(true)) {
            let reason = body.get("reason").and_then(Value::as_str).unwrap_or("no reason");
            // A 200 is no refusal, so nobody else would log it; who logs in may do so again and again, but not often.
            tracing::warn!(reason, "wolf-rbac: the server refuses");
            return Err(Reply::message(200, FAILED).because(reason));
        }
        match body.remove("data") {
            Some(Value::Object(data)) => Ok(data),
            _ => Ok(Map::new()),
        }
    }
}

fn failed(reason: &str) -> Reply {
    Reply::message(500, FAILED).because(reason).classed(Class::Unavailable)
}
