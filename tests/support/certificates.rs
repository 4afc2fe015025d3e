//! Certificates of the tests' own: an authority, and one of it for `localhost`.

use std::{fs, path::Path};

use super::tool;

/// Makes `ca.pem`, and `server.pem` with `server.key`, in a directory.
#[track_caller]
pub fn make(home: &Path) {
    let file =
        |name: &str| home.join(name).to_str().expect("temporary directories have plain names").to_owned();
    let openssl = |arguments: &[&str]| {
        tool::stdout("openssl", arguments);
    };
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=Authority of the tests",
        "-keyout",
        &file("ca.key"),
        "-out",
        &file("ca.pem"),
    ]);
    openssl(&[
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        &file("server.key"),
        "-out",
        &file("server.csr"),
    ]);
    fs::write(home.join("names"), "subjectAltName=DNS:localhost\n").expect("it can be written");
    openssl(&[
        "x509",
        "-req",
        "-in",
        &file("server.csr"),
        "-CA",
        &file("ca.pem"),
        "-CAkey",
        &file("ca.key"),
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        &file("names"),
        "-out",
        &file("server.pem"),
    ]);
}
