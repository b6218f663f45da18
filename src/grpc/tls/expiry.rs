//! When the gateway's own certificate expires. rustls verifies what others show, never what it shows itself, and webpki
//! does not tell the date: so it is read here, from a file that its operator named.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

use super::Acceptor;
use crate::{clock::Clock, reload::Reloaded};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Time enough to see a warning, and to get another certificate.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// A certificate's last moment, if it could be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expiry(Option<SystemTime>);

impl Expiry {
    pub(super) fn of(certificate: Option<&CertificateDer<'_>>) -> Self {
        Self(certificate.and_then(|certificate| not_after(certificate)))
    }

    /// Says so if it is near or past. No reason not to serve: callers decide whom they trust.
    pub(super) fn warn(self, clock: &Clock) {
        let Some(at) = self.0 else { return };
        let date = humantime::format_rfc3339_seconds(at);
        match at.duration_since(clock.wall()) {
            Ok(left) if left > SOON => {}
            Ok(_) => tracing::warn!(%date, "the certificate of --tls-cert expires soon"),
            Err(_) => tracing::warn!(%date, "the certificate of --tls-cert has expired: callers refuse it"),
        }
    }
}

/// Warns once a day, until `stop`.
pub(super) async fn warn_daily(acceptor: Reloaded<Acceptor>, clock: Clock, stop: CancellationToken) {
    let work = async {
        let mut daily = interval_at(Instant::now() + DAY, DAY);
        loop {
            daily.tick().await;
            acceptor.current().expiry.warn(&clock);
        }
    };
    let _stopped = stop.run_until_cancelled(work).await;
}

const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// `notAfter` of a certificate in DER (RFC 5280, section 4.1).
fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    if fields.first() == Some(&VERSION) {
        (_, _, fields) = element(fields)?;
    }
    let [_serial, _signature, _issuer, validity] = {
        let mut next = || {
            let (_, value, rest) = element(fields)?;
            fields = rest;
            Some(value)
        };
        [next()?, next()?, next()?, next()?]
    };
    let (_, _not_before, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    let text = str::from_utf8(text).ok()?;
    match tag {
        // Two digits of the year: 50 and above are of the last century.
        UTC_TIME if text >= "50" => time(&format!("19{text}")),
        UTC_TIME => time(&format!("20{text}")),
        GENERALIZED_TIME => time(text),
        _ => None,
    }
}

/// The first element: its tag, its contents, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = der.split_first_chunk()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        let length = bytes.iter().try_fold(0_usize, |length, byte| {
            Some(length.checked_mul(256)? + usize::from(*byte))
        })?;
        (length, rest)
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// `YYYYMMDDHHMMSSZ`.
fn time(text: &str) -> Option<SystemTime> {
    let digits = text.strip_suffix('Z')?;
    if digits.len() != 14 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (date, time) = digits.split_at(8);
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..],
        &time[..2],
        &time[2..4],
        &time[4..]
    );
    humantime::parse_rfc3339(&text).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(["a-name.example".to_string()]).unwrap();
        params.not_after = date_time_ymd(year, 3, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        certificate.der().to_vec()
    }

    #[test]
    fn the_last_moment_is_read_in_both_forms_of_time() {
        for year in [1999, 2001, 2049, 2050, 2999] {
            let wanted = humantime::parse_rfc3339(&format!("{year}-03-01T00:00:00Z")).unwrap();
            assert_eq!(not_after(&certificate(year)), Some(wanted), "{year}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_last_moment() {
        let whole = certificate(2030);
        for end in 0..whole.len() {
            // Cut anywhere, it must not panic; nor with any byte changed.
            assert_eq!(not_after(&whole[..end]), None);
            let mut changed = whole.clone();
            changed[end] ^= 0xff;
            let _any = not_after(&changed);
        }
        assert_eq!(time("20300229000000Z"), None);
        assert_eq!(time("2030010100000Z"), None);
    }
}
