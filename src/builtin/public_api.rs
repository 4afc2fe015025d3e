//! public-api: makes an endpoint that some plugin offers reachable through a route.
//!
//! APISIX: plugins/public-api.lua, api_router.lua. Invariant: no endpoint is reachable in any other way, so the
//! other plugins of the route decide who may call it.

use std::borrow::Cow;

use http::{HeaderValue, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::plugin::{
    contract,
    credentials::Place,
    env::BuildEnv,
    exchange::Exchange,
    phases::Phases,
    reply::{Flow, Reply, ReplyBody},
};

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Path of the endpoint; the request's own path if there is none.
    pub uri: Option<String>,
}

/// The compiled configuration.
pub struct Plugin {
    uri: Option<Box<str>>,
    /// What the endpoints take credentials out of: which of them this is for shows only when it is asked for.
    secret_args: Box<[&'static str]>,
    /// The endpoints that have credentials in their bodies.
    secret_bodies: Box<[Cow<'static, str>]>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "public-api";
    const PRIORITY: i32 = 501;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"uri": {"type": "string"}}})
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let apis = env.registry.apis();
        let mut secret_args: Vec<_> = apis.iter().flat_map(|api| api.secret_args).copied().collect();
        secret_args.sort_unstable();
        secret_args.dedup();
        let secret_bodies = apis.into_iter().filter(|api| api.secret_bodies).map(|api| api.path).collect();
        let uri = config.uri.map(String::into_boxed_str);
        Ok(Self { uri, secret_args: secret_args.into(), secret_bodies })
    }

    fn credentials(&self, tell: &mut dyn FnMut(Place<'_>)) {
        self.secret_args.iter().for_each(|name| tell(Place::Arg(name)));
        self.secret_bodies.iter().for_each(|path| tell(Place::BodiesAt(path)));
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        if let Some(uri) = &self.uri {
            x.ctx.path = Some(uri.clone());
        }
        let Some(api) = x.world.api(x.method().as_str(), x.path()) else {
            return Reply::status(404).because("no plugin offers this endpoint").into();
        };
        match (api.handler)(x).await {
            Flow::Continue(()) => Reply::bytes(200, "").into(),
            Flow::Break(reply) => finish(reply).into(),
        }
    }
}

/// Endpoints name the type of a JSON answer, unlike plugins that refuse.
fn finish(reply: Reply) -> Reply {
    let named = reply.headers.iter().any(|(name, _)| name == header::CONTENT_TYPE);
    if named || !matches!(reply.body, ReplyBody::Json(_)) {
        return reply;
    }
    reply.with_header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{
        contract::PublicApi,
        reply::CONTINUE,
        testing::{self, Kit},
    };

    fn kit(target: &str) -> Kit {
        let json = PublicApi {
            methods: &["GET"],
            path: "/json".into(),
            secret_args: &[],
            secret_bodies: false,
            handler: |x| Box::pin(async { Reply::json(200, json!({"path": x.path()})).into() }),
        };
        let silent = PublicApi {
            methods: &["GET", "POST"],
            path: "/silent".into(),
            secret_args: &[],
            secret_bodies: false,
            handler: |_| Box::pin(async { CONTINUE }),
        };
        Kit::get(target, &[]).api(json).api(silent)
    }

    #[track_caller]
    fn check(conf: Value, target: &str, said: &str, content_type: Option<&str>) {
        let plugin: Plugin = testing::plugin(conf);
        kit(target).run(async |x| {
            let flow = contract::Plugin::access(&plugin, x).await;
            assert_eq!(testing::answer(&flow), said, "{target}");
            assert_eq!(testing::response_header(&flow, x, "content-type").as_deref(), content_type);
        });
    }

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
    }

    #[test]
    fn dispatches_by_method_and_path() {
        let json = Some("application/json");
        check(json!({}), "/json?a=1", r#"200 {"path":"/json"}"#, json);
        check(json!({"uri": "/json"}), "/mine", r#"200 {"path":"/json"}"#, json);
        check(json!({}), "/mine", "404", None);
        check(json!({"uri": "/nope"}), "/json", "404", None);
        check(json!({}), "/silent", "200 ", None);
        let post =
            Kit::new("POST /json HTTP/1.1\r\nHost: a\r\n\r\n").access(&testing::plugin::<Plugin>(json!({})));
        assert_eq!(post, "404");
    }

    #[test]
    fn refuses_bad_configurations() {
        assert_eq!(
            testing::refusal::<Plugin>(json!({"uri": 1})),
            r#"property "uri" validation failed: wrong type: expected string, got number"#
        );
    }
}
