//! ext-plugin-pre-req: plugins in a runner see the request before nearly all others, authentication included.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/ext-plugin-pre-req/>. The work is done in
//! [`super::shared::ext_plugin`].
//!
//! Differs from APISIX: see there.

use serde_json::Value;

use super::shared::ext_plugin::{self, RequestPlugin};
use crate::plugin::{contract, env::BuildEnv, exchange::Exchange, phases::Phases, reply::Flow};

pub use super::shared::ext_plugin::Config;

/// The compiled configuration.
pub struct Plugin(RequestPlugin);

impl contract::Plugin for Plugin {
    const NAME: &'static str = "ext-plugin-pre-req";
    const PRIORITY: i32 = 12000;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        ext_plugin::schema()
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        RequestPlugin::build(config, Self::NAME, env).map(Self)
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        self.0.run(x).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugin::testing::{Kit, compile_schemas, plugin, refusal};

    #[test]
    fn configurations() {
        compile_schemas::<Plugin>();
        for (conf, expected) in [
            (json!({}), ""),
            (json!({"conf": [{"name": "a", "value": "b"}], "unknown": 1}), ""),
            (
                json!({"conf": []}),
                "property \"conf\" validation failed: expect array to have at least 1 items",
            ),
            (
                json!({"conf": [{"value": "b"}]}),
                "property \"conf\" validation failed: failed to validate item 1: property \"name\" is required",
            ),
            (
                json!({"conf": [{"name": "a"}]}),
                "property \"conf\" validation failed: failed to validate item 1: property \"value\" is required",
            ),
            (
                json!({"allow_degradation": 1}),
                "property \"allow_degradation\" validation failed: wrong type: expected boolean, got number",
            ),
            (json!({"runner": "py"}), "no runner is called \"py\" in ext-plugin.runners of config.yaml"),
        ] {
            assert_eq!(refusal::<Plugin>(conf.clone()), expected, "{conf}");
        }
    }

    #[test]
    fn without_a_runner() {
        let answer = |conf| Kit::get("/", &[]).rewrite(&plugin::<Plugin>(conf));
        assert_eq!(answer(json!({})), "503");
        assert_eq!(answer(json!({"allow_degradation": true})), "continue");
    }
}
