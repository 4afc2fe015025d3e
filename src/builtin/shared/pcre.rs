//! Regular expressions in plugin configurations, refused in the words of `ngx.re`.

use crate::schema::pattern::Pattern;

/// Compiles a rule.
///
/// # Errors
/// What `re_match_compile` of lua-resty-core says. The reason is PCRE's where there is a counterpart, else that
/// of the engine used here.
pub fn compile(rule: &str) -> Result<Pattern, String> {
    Pattern::new(rule).map_err(|e| {
        let text = e.to_string();
        let unclosed = text.contains("unclosed group") || text.contains("without closing parenthesis");
        let reason = if unclosed { "missing )" } else { text.lines().last().unwrap_or_default() };
        format!("pcre_compile() failed: {reason} in \"{rule}\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_in_the_words_of_pcre() {
        let refusal = |rule| compile(rule).err();
        assert_eq!(refusal("a(b"), Some("pcre_compile() failed: missing ) in \"a(b\"".into()));
        assert!(refusal("a**[").is_some_and(|text| text.starts_with("pcre_compile() failed: ")));
        assert_eq!(refusal("^/(?!x)a$"), None);
    }
}
