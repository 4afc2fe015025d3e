//! A blocking HTTP/1.1 client that hides nothing: raw bytes out, every header back.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

use super::PATIENCE;

/// A request being put together.
#[derive(Clone, Debug)]
pub struct Request {
    port: u16,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    None,
    Sized(Vec<u8>),
    Chunked(Vec<u8>),
}

/// A response, whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// What stands behind the code.
    pub reason: String,
    /// In the order and the case they came in.
    pub headers: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
}

impl Request {
    /// A request to a port of this machine.
    pub fn new(port: u16, method: &str, target: &str) -> Self {
        let headers = vec![("Host".to_owned(), format!("127.0.0.1:{port}"))];
        Self { port, method: method.to_owned(), target: target.to_owned(), headers, body: Body::None }
    }

    /// Adds a header; `Host` replaces the usual one.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if name == "Host" {
            self.headers.retain(|(known, _)| known != "Host");
        }
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// HTTP Basic credentials.
    pub fn basic(self, user: &str, password: &str) -> Self {
        let credentials = base64(format!("{user}:{password}").as_bytes());
        self.header("Authorization", &format!("Basic {credentials}"))
    }

    /// A body with its length.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Sized(body.into());
        self
    }

    /// A JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.header("Content-Type", "application/json").body(body.to_string())
    }

    /// A body in chunks.
    pub fn chunked(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Chunked(body.into());
        self
    }

    /// The request as it goes over the wire.
    pub fn wire(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match &self.body {
            Body::None => [head.as_bytes(), b"\r\n"].concat(),
            Body::Sized(body) => {
                [head.as_bytes(), format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
            }
            Body::Chunked(body) => {
                let mut out = [head.as_bytes(), b"Transfer-Encoding: chunked\r\n\r\n"].concat();
                for piece in body.chunks(7_001) {
                    out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    out.extend_from_slice(piece);
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(b"0\r\n\r\n");
                out
            }
        }
    }

    /// Sends it over a connection of its own.
    #[track_caller]
    pub fn send(&self) -> Response {
        match self.try_send() {
            Ok(response) => response,
            Err(e) => panic!("{} {} got no answer: {e}", self.method, self.target),
        }
    }

    /// As [`Request::send`], for servers that may be gone.
    pub fn try_send(&self) -> io::Result<Response> {
        Connection::try_open(self.port)?.try_exchange(self)
    }
}

/// A connection to a port of this machine.
pub struct Connection {
    input: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    #[track_caller]
    pub fn open(port: u16) -> Self {
        Self::try_open(port).unwrap_or_else(|e| panic!("port {port}: {e}"))
    }

    /// As [`Connection::open`], for servers that may be gone.
    pub fn try_open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { input: BufReader::new(stream) })
    }

    /// Sends bytes as they are. A server that closes early is no failure here; the answer tells.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        let _ = self.input.get_mut().write_all(bytes);
        self
    }

    /// For sending while responses are read.
    #[track_caller]
    pub fn writer(&self) -> TcpStream {
        self.input.get_ref().try_clone().expect("a second handle")
    }

    /// Sends a request and reads its response.
    #[track_caller]
    pub fn exchange(&mut self, request: &Request) -> Response {
        self.try_exchange(request).unwrap_or_else(|e| panic!("{} {}: {e}", request.method, request.target))
    }

    /// As [`Connection::exchange`], for connections that may be gone.
    pub fn try_exchange(&mut self, request: &Request) -> io::Result<Response> {
        let wire = request.wire();
        // A server may answer and close before it has read a large body; its answer counts.
        let sent = self.input.get_mut().write_all(&wire);
        let response = self.try_response(&request.method);
        match (sent, response) {
            (Err(e), Err(_)) => Err(e),
            (_, response) => response,
        }
    }

    /// Reads the next final response.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.try_response("GET").unwrap_or_else(|e| panic!("no response: {e}"))
    }

    /// Reads the next response of which only the head counts: 101, or 1xx.
    #[track_caller]
    pub fn head(&mut self) -> Response {
        read_head(&mut self.input).unwrap_or_else(|e| panic!("no response head: {e}"))
    }

    /// As [`Connection::response`], for servers that may not answer at all.
    pub fn try_response_within(&mut self, limit: Duration) -> io::Result<Response> {
        self.input.get_mut().set_read_timeout(Some(limit))?;
        self.try_response("GET")
    }

    fn try_response(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let mut response = read_head(&mut self.input)?;
            if response.status == 100 || response.status == 103 {
                continue;
            }
            if method != "HEAD" && response.status != 204 && response.status != 304 {
                response.body = read_body(&mut self.input, &response)?;
            }
            return Ok(response);
        }
    }

    /// Reads exactly so many bytes.
    #[track_caller]
    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.input.read_exact(&mut bytes).unwrap_or_else(|e| panic!("{count} bytes expected: {e}"));
        bytes
    }

    /// Whether the server closes the connection, and sends nothing before that.
    pub fn ends(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.input.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn read_line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    if input.read_until(b'\n', &mut line)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended"));
    }
    Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn read_head(input: &mut impl BufRead) -> io::Result<Response> {
    let line = read_line(input)?;
    let mut parts = line.splitn(3, ' ');
    let (_, status, reason) = (parts.next(), parts.next(), parts.next());
    let status = status
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(format!("no status line: {line:?}")))?;
    let headers = read_headers(input)?;
    Ok(Response { status, reason: reason.unwrap_or_default().to_owned(), headers, body: Vec::new() })
}

/// Header lines up to the empty line.
pub(super) fn read_headers(input: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = read_line(input)?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("no header: {line:?}")))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
}

fn read_body(input: &mut impl BufRead, response: &Response) -> io::Result<Vec<u8>> {
    if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return read_chunks(input);
    }
    let mut body = Vec::new();
    match response.header("content-length") {
        Some(length) => {
            let length: usize = length.parse().map_err(|_| invalid("no length"))?;
            body.resize(length, 0);
            input.read_exact(&mut body)?;
        }
        None => {
            input.read_to_end(&mut body)?;
        }
    }
    Ok(body)
}

/// A chunked body with its trailers, of which nothing is kept.
pub(super) fn read_chunks(input: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(input)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size =
            usize::from_str_radix(size, 16).map_err(|_| invalid(format!("no chunk size: {line:?}")))?;
        if size == 0 {
            read_headers(input)?;
            return Ok(body);
        }
        let begin = body.len();
        body.resize(begin + size, 0);
        input.read_exact(&mut body[begin..])?;
        read_line(input)?;
    }
}

/// The first header of a name.
pub(super) fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

impl Response {
    /// The first header of a name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Every header of a name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Fails unless the status is this.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?}\n{}", self.headers, self.text());
        self
    }

    /// Fails unless the body is this text.
    #[track_caller]
    pub fn expect_body(self, body: &str) -> Self {
        assert_eq!(self.text(), body, "status {}", self.status);
        self
    }

    /// Fails unless the body contains this text.
    #[track_caller]
    pub fn expect_in_body(self, part: &str) -> Self {
        assert!(self.text().contains(part), "{part:?} is not in {:?} (status {})", self.text(), self.status);
        self
    }

    /// Fails unless the (first) header of that name is this; the empty text stands for none.
    #[track_caller]
    pub fn expect_header(self, name: &str, value: &str) -> Self {
        assert_eq!(self.header(name).unwrap_or_default(), value, "{name} in {:?}", self.headers);
        self
    }
}

/// RFC 4648, for credentials; the tests must not borrow it from what they test.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let word =
            three.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            let index = (word >> (18 - 6 * digit)) as usize & 63;
            out.push(if digit <= three.len() { char::from(DIGITS[index]) } else { '=' });
        }
    }
    out
}

#[test]
fn base64_as_in_rfc_4648() {
    for (plain, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
    {
        assert_eq!(base64(plain.as_bytes()), encoded);
    }
}
