//! Variables, expressions and templates over one request.
//!
//! Names are parsed once, when configuration is compiled ([`var::Var`], [`expr::Expr`],
//! [`template::Template`]); per request only the value is asked for, through [`var::Lookup`]. Start at
//! [`var`]. Nothing in this module may do I/O, or panic whatever the configuration or the request holds.

pub mod body;
pub mod clock;
pub mod cookie;
pub mod expr;
pub mod jsonpath;
pub mod lua;
pub mod pcre;
pub mod template;
pub mod var;
