//! Certificates of the tests' own: an authority, one of it for `localhost`, and those of clients.

use std::{fs, path::Path};

use super::tool;

/// Makes `ca.pem`, and `server.pem` with `server.key`, in a directory.
#[track_caller]
pub fn make(home: &Path) {
    let subject = "/CN=Authority of the tests";
    let fixed = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject];
    openssl(&[&fixed[..], &["-keyout", &file(home, "ca.key"), "-out", &file(home, "ca.pem")]].concat());
    sign(home, "server", "localhost", "subjectAltName=DNS:localhost\n");
}

/// Makes a certificate of the authority in that directory for a client, and its key: both as text.
#[track_caller]
pub fn client(home: &Path, name: &str) -> [String; 2] {
    sign(home, name, name, "extendedKeyUsage=clientAuth\n");
    ["pem", "key"]
        .map(|ending| fs::read_to_string(home.join(format!("{name}.{ending}"))).expect("it is there"))
}

/// Makes NAME.pem and NAME.key.
#[track_caller]
fn sign(home: &Path, name: &str, subject: &str, extensions: &str) {
    let own = |ending: &str| file(home, &format!("{name}.{ending}"));
    let subject = format!("/CN={subject}");
    let request = ["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject];
    openssl(&[&request[..], &["-keyout", &own("key"), "-out", &own("csr")]].concat());
    fs::write(own("extensions"), extensions).expect("it can be written");
    let authority = ["-CA", &file(home, "ca.pem"), "-CAkey", &file(home, "ca.key"), "-CAcreateserial"];
    let rest = ["-days", "2", "-extfile", &own("extensions"), "-out", &own("pem")];
    openssl(&[&["x509", "-req", "-in", &own("csr")][..], &authority, &rest].concat());
}

fn file(home: &Path, name: &str) -> String {
    home.join(name).to_str().expect("temporary directories have plain names").to_owned()
}

#[track_caller]
fn openssl(arguments: &[&str]) {
    tool::stdout("openssl", arguments);
}
