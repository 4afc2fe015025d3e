//! JSON Web Tokens for the plugins that believe in them: tokens, keys, sets of keys.
//!
//! [`token`] reads a token without believing it, [`key`] has keys that are parsed once and bound to one algorithm,
//! [`jwks`] chooses among the keys of a published set, [`source`] fetches one. Types, algorithms and JWKs are those of the crate
//! `jsonwebtoken`; [`provider`] gives it OpenSSL for its cryptography, and [`es512`] has the one algorithm that the
//! crate does not know.
//!
//! Invariant: the algorithm is that of the key, never of the token. There is no algorithm `none`, and no HMAC secret
//! is ever made of a public key or taken from a published set.

mod es512;
pub mod jwks;
pub mod key;
pub mod provider;
pub mod source;
pub mod token;
