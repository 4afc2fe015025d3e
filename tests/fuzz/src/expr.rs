//! Expressions: what compiles always has the same answer, and knows whether it needs a body.

use portcullis::vars::{
    expr::{Expr, check_post_args},
    var::Var,
};

/// Compiles the JSON of the first line and asks it about the text that follows.
pub fn run(data: &[u8]) {
    let Some((rule, request)) = crate::lines(data) else { return };
    let Some(rule) = crate::json(rule) else { return };
    let _ = check_post_args(&rule);
    let Ok(expr) = Expr::parse(&rule) else { return };
    let request = crate::Anything(request);
    let answer = expr.eval(&request);
    assert_eq!(expr.eval(&request), answer);
    assert_eq!(expr.needs_body(), expr.vars().into_iter().any(Var::needs_body));
    assert!(answer || !expr.is_empty(), "the empty expression holds");
}
