//! ext-plugin-post-req: plugins in a runner see the request after all others, before it goes upstream.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/ext-plugin-post-req/>. The work is done in
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
    const NAME: &'static str = "ext-plugin-post-req";
    const PRIORITY: i32 = -3000;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        ext_plugin::schema()
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        RequestPlugin::build(config, Self::NAME, env).map(Self)
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        self.0.run(x).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugin::testing::{Kit, compile_schemas, plugin};

    #[test]
    fn without_a_runner() {
        compile_schemas::<Plugin>();
        let answer = |conf| Kit::get("/", &[]).access(&plugin::<Plugin>(conf));
        assert_eq!(answer(json!({})), "503");
        assert_eq!(answer(json!({"allow_degradation": true})), "continue");
    }
}
