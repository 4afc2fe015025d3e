//! Templates: without variables they are their source, and they never count more values than they have variables.

use portcullis::vars::{pcre::Captures, template::Template};

/// Renders the template of the first line with values from what follows.
pub fn run(data: &[u8]) {
    let Some((source, request)) = crate::lines(data) else { return };
    let request = crate::Anything(request);
    let template = Template::parse(source);
    assert_eq!(template.source(), source);
    let mut out = String::new();
    assert!(template.render_into(&mut out, &request) <= template.vars().count());
    assert_eq!(template.render(&request), out);
    if template.is_constant() {
        assert_eq!(out, source);
    }
    assert_eq!(template.render_escaped(&request, |text| text.into()), out);
    let _ = Template::parse_with_captures(source).render_with_captures(&request, &Captures::default());
}
