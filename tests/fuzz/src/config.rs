//! config.yaml: every text gives settings, every fault a line of the text, and no key of the Admin API is ever shown.

use portcullis::settings::from_text;

/// Reads a text as config.yaml, then as an admin key in the wrong place.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // What YAML takes for the end of a line.
    let count = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
    let loaded = from_text(text, None, &|name| (name.len() == 1).then(|| "5".to_owned()));
    for fault in &loaded.faults {
        assert!(fault.line.is_none_or(|line| (1..=count + 1).contains(&line)), "{fault}");
    }
    let word: String = text.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
    if word.len() < 20 {
        return;
    }
    let secret = format!("deployment: {{admin: {{admin_key: [{{name: a, role: nobody, key: [{word}]}}]}}}}");
    let loaded = from_text(&secret, None, &|_| None);
    assert!(loaded.faults.iter().all(|fault| !fault.to_string().contains(&word)), "{word}");
    assert!(!format!("{:?}", loaded.settings).contains(&word), "{word}");
}
