//! A real OpenLDAP with a few users, on free ports of this machine.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{certificates, eventually, gateway::free_port, tool};

const PROGRAM: &str = "/usr/sbin/slapd";

/// Everything below it is the directory's content.
pub const BASE: &str = "ou=users,dc=example,dc=org";

/// Everything below it are groups: `staff` of user01, user02 and `comma,user`, `admins` of user02.
pub const GROUPS: &str = "ou=groups,dc=example,dc=org";

/// Who may see everything, and its password.
pub const ADMIN: (&str, &str) = ("cn=admin,dc=example,dc=org", "adminpassword");

/// `cn`, `uid`, password and department of each user below [`BASE`].
const USERS: &[(&str, &str, &str, &str)] = &[
    ("user01", "user01", "password1", "sales"),
    ("user02", "user02", "pass:word2", "sales"),
    (r"comma\,user", "comma,user", "commapass", "legal"),
    ("jdoe", "jdoe", "janesecret", "it"),
    // Of the examples in docs/plugins.
    ("ann", "ann.one", "correct-horse", "it"),
    // Hidden from whoever has not said who it is.
    ("secretuser", "secretuser", "secretpass", "it"),
];

/// The running server. It ends when it is dropped.
pub struct Slapd {
    /// Where `ldap://` is spoken.
    pub port: u16,
    /// Where `ldaps://` is spoken.
    pub tls_port: u16,
    home: TempDir,
    child: Child,
}

impl Slapd {
    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start() -> Self {
        let home = tempfile::Builder::new().prefix("portcullis-slapd-").tempdir().expect("a directory");
        certificates::make(home.path());
        fs::create_dir(home.path().join("db")).expect("a directory can be made");
        fs::write(home.path().join("slapd.conf"), configuration(home.path())).expect("it can be written");
        fs::write(home.path().join("users.ldif"), content()).expect("it can be written");
        let (conf, ldif) = (path(home.path(), "slapd.conf"), path(home.path(), "users.ldif"));
        tool::stdout("/usr/sbin/slapadd", &["-f", &conf, "-l", &ldif]);
        let (port, tls_port) = (free_port(), free_port());
        let child = serve(home.path(), port, tls_port);
        let started = Self { port, tls_port, home, child };
        started.until_ready();
        started
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `localhost:PORT`, where TLS is spoken: its certificate is for that name.
    pub fn tls_address(&self) -> String {
        format!("localhost:{}", self.tls_port)
    }

    /// The certificate of the authority that signed the server's.
    pub fn authority(&self) -> String {
        path(self.home.path(), "ca.pem")
    }

    /// How many connections from clients are open to `ldap://`, as the kernel counts them.
    pub fn connections(&self) -> usize {
        let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let local = format!("0100007F:{:04X}", self.port);
        // State 01: established.
        let is_ours = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.len() > 3 && fields[1] == local && fields[3] == "01"
        };
        table.lines().filter(is_ours).count()
    }

    /// Ends the server and starts it anew on the same ports: connections of before are closed.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.child = serve(self.home.path(), self.port, self.tls_port);
        self.until_ready();
    }

    /// Ends the server.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    #[track_caller]
    fn until_ready(&self) {
        eventually("slapd listens", || {
            let listens = |port| TcpStream::connect(("127.0.0.1", port)).is_ok();
            listens(self.port) && listens(self.tls_port)
        });
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = fs::read_to_string(self.home.path().join("slapd.log")).unwrap_or_default();
            eprintln!("---- slapd said:\n{said}----");
        }
        self.stop();
    }
}

fn serve(home: &Path, port: u16, tls_port: u16) -> Child {
    let log = fs::File::create(home.join("slapd.log")).expect("a log can be made");
    let urls = format!("ldap://127.0.0.1:{port} ldaps://127.0.0.1:{tls_port}");
    // Any debug level keeps it in the foreground.
    let arguments = ["-h", &urls, "-f", &path(home, "slapd.conf"), "-d", "0"];
    let child =
        Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    child.unwrap_or_else(|e| panic!("{PROGRAM} cannot be run ({e}): `make test` installs what tests need"))
}

fn path(home: &Path, name: &str) -> String {
    home.join(name).to_str().expect("temporary directories have plain names").to_owned()
}

fn configuration(home: &Path) -> String {
    let home = home.display();
    let (admin, password) = ADMIN;
    format!(
        "include /etc/ldap/schema/core.schema\n\
         include /etc/ldap/schema/cosine.schema\n\
         include /etc/ldap/schema/inetorgperson.schema\n\
         modulepath /usr/lib/ldap\n\
         moduleload back_mdb\n\
         pidfile {home}/slapd.pid\n\
         TLSCACertificateFile {home}/ca.pem\n\
         TLSCertificateFile {home}/server.pem\n\
         TLSCertificateKeyFile {home}/server.key\n\
         # The dangerous setting that some directories have: a bind without a password is a success.\n\
         allow bind_anon_cred bind_anon_dn\n\
         access to dn.exact=\"cn=secretuser,{BASE}\" by anonymous auth by users read by * none\n\
         access to attrs=userPassword by anonymous auth by * none\n\
         access to * by * read\n\
         database mdb\n\
         maxsize 10485760\n\
         suffix \"dc=example,dc=org\"\n\
         rootdn \"{admin}\"\n\
         rootpw {password}\n\
         directory {home}/db\n"
    )
}

fn content() -> String {
    let mut ldif = String::from(
        "dn: dc=example,dc=org\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: Example\n\n\
         dn: ou=users,dc=example,dc=org\nobjectClass: organizationalUnit\nou: users\n\n\
         dn: ou=staff,ou=users,dc=example,dc=org\nobjectClass: organizationalUnit\nou: staff\n\n",
    );
    for (cn, uid, password, department) in USERS {
        let plain = cn.replace('\\', "");
        ldif.push_str(&format!(
            "dn: cn={cn},{BASE}\nobjectClass: inetOrgPerson\ncn: {plain}\nsn: {uid}\nuid: {uid}\n\
             departmentNumber: {department}\nuserPassword: {password}\n\n"
        ));
    }
    ldif.push_str(&format!("dn: {GROUPS}\nobjectClass: organizationalUnit\nou: groups\n\n"));
    for (group, members) in [("staff", &["user01", "user02", r"comma\,user"][..]), ("admins", &["user02"])] {
        ldif.push_str(&format!("dn: cn={group},{GROUPS}\nobjectClass: groupOfNames\ncn: {group}\n"));
        members.iter().for_each(|member| ldif.push_str(&format!("member: cn={member},{BASE}\n")));
        ldif.push('\n');
    }
    // Those that only a search finds.
    for (cn, uid, password) in [("Deep Down", "deep", "deeppass"), ("Ann", "ann", "correct-horse")] {
        ldif.push_str(&format!(
            "dn: cn={cn},ou=staff,{BASE}\nobjectClass: inetOrgPerson\ncn: {cn}\nsn: {cn}\nuid: {uid}\n\
             userPassword: {password}\n\n"
        ));
    }
    ldif
}
