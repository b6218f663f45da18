//! Certificates by the `openssl` command, as operators make them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tempfile::TempDir;

/// All that the commands read of a configuration, so that the system's does not matter.
const CONFIG: &str = "
[req]
distinguished_name = name
[name]
[ca]
default_ca = authority
[authority]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
";

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// What the gateway is called in these tests.
pub const HERE: &str = "DNS:localhost,IP:127.0.0.1";

/// A CA with a directory of its own, and what it signed.
pub struct Authority {
    directory: TempDir,
}

/// A certificate and its key, in PEM files.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.cnf"), CONFIG).unwrap();
        fs::write(directory.path().join("index.txt"), "").unwrap();
        let authority = Self { directory };
        // Of two CAs with the same name the wrong one would be tried, too.
        let subject = format!("/CN=CA {}", authority.directory.path().file_name().unwrap().display());
        let name = ["-subj", &subject, "-addext", "basicConstraints=critical,CA:TRUE"];
        let files = ["-keyout", "ca.key", "-out", "ca.pem", "-days", "2"];
        authority.openssl(&[&["req", "-x509", "-config", "ca.cnf"], &NEW_KEY[..], &name, &files].concat());
        authority
    }

    /// Its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A new pair in files of this name, valid today for these alternative names (`DNS:a.example,URI:spiffe://b`).
    pub fn issue(&self, file: &str, names: &str) -> Pair {
        self.sign(file, names, &["-days", "1"])
    }

    /// The same, but it expired at the end of 2020.
    pub fn issue_expired(&self, file: &str, names: &str) -> Pair {
        let dates = ["-startdate", "20200101000000Z", "-enddate", "20201231235959Z"];
        self.sign(file, names, &dates)
    }

    fn sign(&self, file: &str, names: &str, dates: &[&str]) -> Pair {
        let [cert, key, request] = ["pem", "key", "csr"].map(|kind| format!("{file}.{kind}"));
        let names = format!("subjectAltName={names}");
        let name = ["-subj", "/CN=a common name", "-addext", &names];
        let files = ["-keyout", &key, "-out", &request];
        self.openssl(&[&["req", "-new", "-config", "ca.cnf"], &NEW_KEY[..], &name, &files].concat());
        let files = ["-cert", "ca.pem", "-keyfile", "ca.key", "-in", &request, "-out", &cert];
        self.openssl(&[&["ca", "-batch", "-notext", "-config", "ca.cnf"], &files[..], dates].concat());
        Pair {
            cert: self.directory.path().join(cert),
            key: self.directory.path().join(key),
        }
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(self.directory.path())
            .output()
            .expect("the openssl command is needed");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments:?}: {stderr}");
    }
}

impl Pair {
    /// The certificate as it shows in a handshake.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.cert).unwrap()
    }
}

/// Puts a file in the place of another, in one step.
pub fn replace(path: &Path, by: &Path) {
    put(path, &fs::read(by).unwrap());
}

/// The same of contents: nobody sees half of them.
pub fn put(path: &Path, contents: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, contents).unwrap();
    fs::rename(new, path).unwrap();
}
