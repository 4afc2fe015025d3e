//! Checks what config.yaml and the resource file name, without starting anything: what `portcullis test` does.
//!
//! A fault of a resource is a sentence of APISIX. Which member it is about is read from the sentence, and its line looked
//! up in the file; where either cannot be found, the resource itself is named.

use std::{collections::HashSet, fs, path::Path};

use serde_json::Value;

use super::{environment, store};
use crate::{
    builtin,
    plugin::{def::SchemaType, env::Registry},
    resource::{self, Key, Kind},
    settings::{
        Settings,
        fault::{Fault, Severity, nearest},
    },
    snapshot::{compile::Env, judge, workspace},
    store::Event,
    yaml::{self, positions::Positions},
};

/// The members that refer to other resources, and to which kind.
const REFERENCES: [(&str, Kind); 4] = [
    ("upstream_id", Kind::Upstream),
    ("service_id", Kind::Service),
    ("plugin_config_id", Kind::PluginConfig),
    ("group_id", Kind::ConsumerGroup),
];

/// The names in `plugins` of config.yaml that no plugin here has.
pub fn plugins(settings: &Settings) -> Option<Fault> {
    let known = |name: &str| builtin::REGISTRY.iter().any(|def| def.name == name);
    let named = settings.plugins.as_deref().unwrap_or_default();
    let absent: Vec<&str> = named.iter().map(String::as_str).filter(|name| !known(name)).collect();
    let text = settings.file().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    (!absent.is_empty()).then(|| Fault {
        severity: Severity::Warning,
        file: settings.file().map(|file| file.display().to_string()).unwrap_or_default(),
        line: Positions::scan(&text).line("plugins"),
        path: "plugins".to_owned(),
        what: format!("no such plugin here: {}", absent.join(", ")),
        right: String::new(),
        nearest: None,
    })
}

/// Every fault of every resource, not only the first.
pub fn resources(settings: &Settings) -> Vec<Fault> {
    let path = settings.resource_file();
    let places = Places::read(&path);
    let fault = |severity: Severity, place: Place, what: String| Fault {
        severity,
        file: path.display().to_string(),
        line: place.line,
        path: place.path,
        what,
        right: String::new(),
        nearest: place.nearest,
    };
    let (env, opened) = match (environment(settings), store::open(settings)) {
        (Ok(env), Ok(opened)) => (env, opened),
        (Err(e), _) | (_, Err(e)) => return vec![fault(Severity::Error, Place::default(), format!("{e:#}"))],
    };
    let mut faults: Vec<Fault> = Vec::new();
    if let Some(why) = opened.file.as_ref().and_then(|file| file.fault().borrow().clone()) {
        faults.push(fault(Severity::Error, Place::default(), why.to_string()));
    }
    let Some(Event::Reset { entries, .. }) = opened.store.watch().try_recv() else { return faults };
    let keys: HashSet<&Key> = entries.iter().map(|entry| &entry.key).collect();
    for entry in &entries {
        let Ok(value) = serde_json::from_str::<Value>(&entry.value) else { continue };
        let has_metadata = |name: &str| keys.contains(&Key::new(Kind::PluginMetadata, name));
        let judged = judge::resource(&env, &entry.key, &value, &has_metadata);
        if let Err(why) = judged.and_then(|()| workspace::check(&env, &entry.key, &value)) {
            faults.push(fault(Severity::Error, places.of(&env, &entry.key, &trail(&why)), why));
        }
        for (member, to) in REFERENCES {
            let Some(id) = value.get(member).and_then(id_text) else { continue };
            if !keys.contains(&Key::new(to, id.as_str())) {
                let place = places.of(&env, &entry.key, &[Step::Name(member.to_owned())]);
                faults.push(fault(
                    Severity::Warning,
                    place,
                    format!("there is no {} {id}", to.schema_name()),
                ));
            }
        }
    }
    faults
}

/// A step on the way from a resource to the member that a sentence is about.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    /// Counted from 0.
    Item(usize),
    /// A member that should not be there.
    Unknown(String),
}

/// Reads the way out of one of APISIX's sentences.
fn trail(sentence: &str) -> Vec<Step> {
    const PLUGIN: &str = "failed to check the configuration of plugin ";
    let mut steps = Vec::new();
    let mut rest = sentence.strip_prefix("invalid configuration: ").unwrap_or(sentence);
    loop {
        if let Some((name, inner)) = between(rest, "property \"", "\" validation failed: ") {
            steps.push(Step::Name(name.to_owned()));
            rest = inner;
        } else if let Some((number, inner)) = between(rest, "failed to validate item ", ": ") {
            steps.push(Step::Item(number.parse::<usize>().unwrap_or(1).saturating_sub(1)));
            rest = inner;
        } else if let Some((name, inner)) = between(rest, PLUGIN, " err: ") {
            steps.extend([Step::Name("plugins".to_owned()), Step::Name(name.to_owned())]);
            rest = inner;
        } else {
            if let Some(name) = rest.strip_prefix("additional properties forbidden, found ") {
                steps.push(Step::Unknown(name.to_owned()));
            } else if let Some((name, _)) = between(rest, "unknown plugin [", "]") {
                steps.extend([Step::Name("plugins".to_owned()), Step::Name(name.to_owned())]);
            }
            return steps;
        }
    }
}

fn between<'t>(text: &'t str, open: &str, close: &str) -> Option<(&'t str, &'t str)> {
    text.strip_prefix(open)?.split_once(close)
}

/// Where a fault is shown.
#[derive(Default)]
struct Place {
    path: String,
    line: Option<usize>,
    nearest: Option<String>,
}

/// The resource file as text: where what stands.
struct Places {
    positions: Positions,
    document: Value,
}

impl Places {
    /// Of a file that cannot be read, nothing is known.
    fn read(file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap_or_default();
        Self { positions: Positions::scan(&text), document: yaml::parse(&text).unwrap_or_default() }
    }

    fn of(&self, env: &Env, key: &Key, steps: &[Step]) -> Place {
        let dir = key.kind().dir();
        let mut inside = String::new();
        let mut nearest_name = None;
        let mut schema = Some(resource::schema_json(key.kind(), env.compat).clone());
        for step in steps {
            match step {
                Step::Name(name) => {
                    inside.push_str(&format!(".{name}"));
                    let plugin = inside.strip_prefix(".plugins.").filter(|rest| *rest == name);
                    schema = match plugin.and_then(|name| env.registry.find(name)) {
                        Some(def) => def.schema(SchemaType::Route).map(|schema| schema.json.clone()),
                        None => schema.and_then(|schema| schema.get("properties")?.get(name).cloned()),
                    };
                }
                Step::Item(index) => {
                    inside.push_str(&format!("[{index}]"));
                    schema = schema.and_then(|schema| schema.get("items").cloned());
                }
                Step::Unknown(name) => {
                    inside.push_str(&format!(".{name}"));
                    let known = schema.as_ref().and_then(|schema| schema.get("properties")?.as_object());
                    let known = known.into_iter().flatten().map(|(name, _)| name.as_str());
                    nearest_name = nearest(name, known).map(str::to_owned);
                }
            }
        }
        let item = self.item(key).map(|index| format!("{dir}[{index}]{inside}"));
        Place {
            path: format!("{dir}.{}{inside}", key.id()),
            line: item.and_then(|path| self.positions.line(&path)),
            nearest: nearest_name,
        }
    }

    /// Which of its list a resource is.
    fn item(&self, key: &Key) -> Option<usize> {
        let list = self.document.get(key.kind().dir())?.as_array()?;
        list.iter().position(|item| {
            let named = |member: &str| item.get(member).and_then(id_text);
            named("id").or_else(|| named("username")).is_some_and(|id| id == key.id())
        })
    }
}

fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sentence: &str, expected: &[Step]) {
        assert_eq!(trail(sentence), expected, "{sentence}");
    }

    fn name(text: &str) -> Step {
        Step::Name(text.to_owned())
    }

    #[test]
    fn the_way_to_the_member_that_is_meant() {
        check(
            r#"invalid configuration: property "upstream" validation failed: property "nodes" validation failed: object matches none of the required"#,
            &[name("upstream"), name("nodes")],
        );
        check(
            r#"invalid configuration: property "methods" validation failed: failed to validate item 2: matches none of the enum values"#,
            &[name("methods"), Step::Item(1)],
        );
        check(
            r#"failed to check the configuration of plugin key-auth err: property "header" validation failed: wrong type: expected string, got number"#,
            &[name("plugins"), name("key-auth"), name("header")],
        );
        check(
            "invalid configuration: additional properties forbidden, found upstraem_id",
            &[Step::Unknown("upstraem_id".to_owned())],
        );
        check("unknown plugin [key-auht], did you mean key-auth?", &[name("plugins"), name("key-auht")]);
        check("something else", &[]);
    }
}
