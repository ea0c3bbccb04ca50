//! URIs as `doc/uri.md` of the NBD project defines them, with libnbd's `tls-certificates`.

use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode};

use crate::base::{Error, ErrorKind, Result};
use crate::format::nbd::MAX_STRING;
use crate::format::nbd::constants::DEFAULT_PORT;

/// What stands for itself in the export's name and in a query's value; all else is percent-encoded.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b':');

/// Where an export is and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    endpoint: Endpoint,
    tls: Option<TlsParameters>,
    export: String,
}

/// What to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A host name or address, without the brackets of IPv6, and a port.
    Tcp {
        /// The host's name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix domain socket; one that starts with a NUL byte is in Linux's abstract namespace.
    Unix(PathBuf),
}

/// What the URI says about TLS; only there when it demands TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsParameters {
    /// `tls-certificates`: the directory of `ca-cert.pem`, and of `client-cert.pem` with `client-key.pem`.
    pub certificates: Option<PathBuf>,
    /// `tls-hostname`: the name that the server's certificate must be for, instead of the host's.
    pub hostname: Option<String>,
    /// `tls-verify-peer`: whether the server's certificate is checked at all.
    pub verify_peer: bool,
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

impl Uri {
    /// Parses a URI: `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, `nbds://…`, `nbds+unix://…`.
    ///
    /// Parameters that are not known are refused by name.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_inner(text).map_err(|e| e.context(format!("'{}' is not an NBD URI", text.escape_debug())))
    }

    fn parse_inner(text: &str) -> Result<Self> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| usage("it has no scheme; nbd:// is one"))?;
        let (unix, secure) = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            other => {
                return Err(usage(format!("the scheme '{other}' is not known; nbd, nbds, nbd+unix and nbds+unix are")));
            }
        };
        let rest = rest.strip_prefix("//").ok_or_else(|| usage("'//' must follow the scheme"))?;
        if rest.contains('#') {
            return Err(usage("it has a fragment ('#'); write %23 for that character"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode_text("the export's name", path)?;
        if export.len() > MAX_STRING {
            return Err(usage(format!("the export's name has more than {MAX_STRING} bytes")));
        }

        let mut parameters = Parameters::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| usage(format!("the parameter '{pair}' has no value")))?;
            parameters.set(&decode_text("a parameter's name", name)?, value)?;
        }
        let endpoint = match parameters.socket {
            Some(path) if unix => {
                if !host_part(authority).is_empty() {
                    return Err(usage("a Unix domain socket has no host; write three slashes after the scheme"));
                }
                Endpoint::Unix(path)
            }
            None if unix => return Err(usage("the parameter 'socket' is missing: which Unix domain socket?")),
            Some(_) => return Err(usage(format!("'socket' goes with {scheme}+unix, not with {scheme}"))),
            None => tcp(authority)?,
        };
        if !secure && let Some(name) = parameters.first_tls {
            return Err(usage(format!("'{name}' goes with a scheme that demands TLS, not with {scheme}")));
        }
        let tls = secure.then(|| TlsParameters {
            certificates: parameters.certificates,
            hostname: parameters.hostname,
            verify_peer: parameters.verify_peer.unwrap_or(true),
        });
        Ok(Self { endpoint, tls, export })
    }

    /// What to connect to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What is said about TLS, or `None` where the connection is to be plain.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsParameters> {
        self.tls.as_ref()
    }

    /// The export's name; empty for the server's default.
    #[must_use]
    pub fn export(&self) -> &str {
        &self.export
    }

    /// The same server's export of another name.
    #[must_use]
    pub fn with_export(&self, name: impl Into<String>) -> Self {
        Self { export: name.into(), ..self.clone() }
    }
}

#[derive(Default)]
struct Parameters {
    socket: Option<PathBuf>,
    certificates: Option<PathBuf>,
    hostname: Option<String>,
    verify_peer: Option<bool>,
    /// The first of those that only make sense with TLS.
    first_tls: Option<String>,
}

impl Parameters {
    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        if name.starts_with("tls-") && self.first_tls.is_none() {
            self.first_tls = Some(name.to_owned());
        }
        let twice = match name {
            "socket" => self.socket.replace(decode_path(name, value)?).is_some(),
            "tls-certificates" => self.certificates.replace(decode_path(name, value)?).is_some(),
            "tls-hostname" => self.hostname.replace(decode_text(name, value)?).is_some(),
            "tls-verify-peer" => {
                let verify = match value {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    other => return Err(usage(format!("tls-verify-peer is 0 or 1, not '{other}'"))),
                };
                self.verify_peer.replace(verify).is_some()
            }
            "tls-type" if value == "x509" => false,
            "tls-type" => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("TLS of the type '{value}' is not supported; x509 is"),
                ));
            }
            "tls-psk-file" | "tls-username" => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("'{name}': TLS with pre-shared keys is not supported; certificates are"),
                ));
            }
            other => return Err(usage(format!("the parameter '{other}' is not known"))),
        };
        if twice {
            return Err(usage(format!("the parameter '{name}' is there twice")));
        }
        Ok(())
    }
}

/// Percent-decodes; a `%` that no two hexadecimal digits follow is an error, not itself.
fn decode(what: &str, text: &str) -> Result<Vec<u8>> {
    for (at, _) in text.match_indices('%') {
        let digits = text.as_bytes().get(at + 1..at + 3).unwrap_or_default();
        if digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(usage(format!("in {what}, '%' is not followed by two hexadecimal digits: '{text}'")));
        }
    }
    Ok(percent_decode_str(text).collect())
}

fn decode_text(what: &str, text: &str) -> Result<String> {
    match String::from_utf8(decode(what, text)?) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(usage(format!("{what} is not UTF-8 text without NUL: '{text}'"))),
    }
}

fn decode_path(what: &str, text: &str) -> Result<PathBuf> {
    let bytes = decode(what, text)?;
    if bytes.is_empty() {
        return Err(usage(format!("'{what}' names no path")));
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// An authority without its user, whom only pre-shared keys would need.
fn host_part(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

fn tcp(authority: &str) -> Result<Endpoint> {
    let authority = host_part(authority);
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(|| usage("'[' without ']' in the host"))?;
            let port = match rest {
                "" => "",
                rest => rest.strip_prefix(':').ok_or_else(|| usage("only a port may follow the host's ']'"))?,
            };
            (host, port)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let host = decode_text("the host", host)?;
    let port = match port {
        "" => DEFAULT_PORT,
        digits => digits
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| usage(format!("'{digits}' is not a port; an IPv6 address stands in brackets")))?,
    };
    Ok(Endpoint::Tcp { host: if host.is_empty() { "localhost".to_owned() } else { host }, port })
}

fn encoded_path(path: &Path) -> impl fmt::Display + '_ {
    percent_encode(path.as_os_str().as_bytes(), ENCODED)
}

/// The URI in its normal spelling.
impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls.is_some() { "nbds" } else { "nbd" })?;
        match &self.endpoint {
            Endpoint::Tcp { host, port } => {
                let host = utf8_percent_encode(host, ENCODED);
                if host.to_string().contains(':') {
                    write!(f, "://[{host}]")?
                } else {
                    write!(f, "://{host}")?
                }
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
            }
            Endpoint::Unix(_) => f.write_str("+unix://")?,
        }
        write!(f, "/{}", utf8_percent_encode(&self.export, ENCODED))?;
        let mut separator = '?';
        let mut parameter = |f: &mut fmt::Formatter<'_>, name: &str, value: &dyn fmt::Display| {
            write!(f, "{separator}{name}={value}")?;
            separator = '&';
            Ok(())
        };
        if let Endpoint::Unix(path) = &self.endpoint {
            parameter(f, "socket", &encoded_path(path))?;
        }
        if let Some(tls) = &self.tls {
            if let Some(path) = &tls.certificates {
                parameter(f, "tls-certificates", &encoded_path(path))?;
            }
            if let Some(name) = &tls.hostname {
                parameter(f, "tls-hostname", &utf8_percent_encode(name, ENCODED))?;
            }
            if !tls.verify_peer {
                parameter(f, "tls-verify-peer", &0)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_and_part_of_the_uri_document_is_understood() {
        let tcp = |host: &str, port| Endpoint::Tcp { host: host.to_owned(), port };
        for (text, endpoint, export, tls) in [
            ("nbd://example.com/disk", tcp("example.com", 10809), "disk", false),
            ("nbd://example.com/", tcp("example.com", 10809), "", false),
            ("nbd://example.com", tcp("example.com", 10809), "", false),
            ("nbd://example.com//disk", tcp("example.com", 10809), "/disk", false),
            ("nbd://example.com/hello%20world", tcp("example.com", 10809), "hello world", false),
            ("nbd://example.com:99/a/b", tcp("example.com", 99), "a/b", false),
            ("NBD://[2001:db8::1]:99/a/../b", tcp("2001:db8::1", 99), "a/../b", false),
            ("nbds://alice@[::1]/%2f%C3%A9", tcp("::1", 10809), "/é", true),
            ("nbd+unix:///disk?socket=sock", Endpoint::Unix("sock".into()), "disk", false),
            ("nbd+unix:///?socket=%00/abstract", Endpoint::Unix("\0/abstract".into()), "", false),
            ("nbds+unix://alice@/?socket=/a+b%20c", Endpoint::Unix("/a+b c".into()), "", true),
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!((uri.endpoint(), uri.export(), uri.tls().is_some()), (&endpoint, export, tls), "{text}");
            assert_eq!(Uri::parse(&uri.to_string()).unwrap(), uri, "{uri}");
        }
    }

    #[test]
    fn what_is_said_about_tls_is_kept() {
        let uri = "nbds+unix:///x?socket=/s&tls-certificates=/etc/pki/a%26b&tls-hostname=kvm1&tls-verify-peer=0";
        let uri = Uri::parse(uri).unwrap();
        let tls = uri.tls().unwrap();
        assert_eq!(tls.certificates.as_deref(), Some(Path::new("/etc/pki/a&b")));
        assert_eq!((tls.hostname.as_deref(), tls.verify_peer), (Some("kvm1"), false));
        assert_eq!(Uri::parse(&uri.to_string()).unwrap(), uri);
        assert!(Uri::parse("nbds://h/x?tls-type=x509").unwrap().tls().unwrap().verify_peer);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, word) in [
            ("disk", "scheme"),
            ("http://h/x", "http"),
            ("nbd:/x", "//"),
            ("nbd+unix:///x", "socket"),
            ("nbd+unix:///x?socket=", "socket"),
            ("nbd+unix://host/x?socket=/s", "host"),
            ("nbd://h/x?socket=/s", "socket"),
            ("nbd+unix:///x?socket=/s&socket=/t", "twice"),
            ("nbd+unix:///x?socket=/s&color=red", "color"),
            ("nbd://h/x?tls-hostname=k", "tls-hostname"),
            ("nbds://h/x?tls-type=psk", "psk"),
            ("nbds://h/x?tls-psk-file=/k", "pre-shared"),
            ("nbds://h/x?tls-verify-peer=maybe", "maybe"),
            ("nbd://h:0/x", "'0'"),
            ("nbd://h:70000/x", "70000"),
            ("nbd://::1/x", "brackets"),
            ("nbd://[::1/x", "']'"),
            ("nbd://h/%zz", "hexadecimal"),
            ("nbd://h/%2", "hexadecimal"),
            ("nbd://h/%00", "NUL"),
            ("nbd://h/%ff", "UTF-8"),
            ("nbd://h/x#y", "fragment"),
        ] {
            let error = Uri::parse(text).unwrap_err();
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
        assert!(Uri::parse(&format!("nbd://h/{}", "x".repeat(4097))).is_err());
    }
}
