//! Commands that people paste into a shell, whatever a key holds.

use std::{fmt::Write as _, net::SocketAddr};

use crate::invitation::Key;

/// The command that settles the doubt about a key: `resolution` is one of `--as`. To be run where the gateway runs, which
/// takes calls at `grpc`; with TLS nobody knows by which name, and the environment says where (`GATEWAY_TARGET`).
pub fn resolve(key: &Key, resolution: &str, grpc: Option<SocketAddr>) -> String {
    // With the sign of equality, as both may begin with a hyphen.
    let mut command = format!(
        "surveylab-gateway invitations resolve --collector={} --crk={} --as={resolution}",
        word(key.collector_id()),
        word(key.crk()),
    );
    if let Some(target) = grpc.and_then(target) {
        command += " --target=";
        command += &target;
    }
    command
}

/// Where the commands are to call; `None` where they do so by themselves.
fn target(mut grpc: SocketAddr) -> Option<String> {
    if grpc.ip().is_unspecified() {
        grpc.set_ip(match grpc {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let text = format!("http://{grpc}");
    (text != "http://127.0.0.1:50051").then_some(text)
}

/// A text as one word of a shell.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_string()
    } else if text.chars().any(is_deceptive) {
        escaped(text)
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Does it show as nothing, or have what stands around it show in another order? Nobody could tell what a command with such
/// letters does. Unicode's format characters, and spaces that look like others or break lines.
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || (c != ' ' && c.is_whitespace())
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// In the form that POSIX.1-2024 has for it: bytes by their octal numbers, which are never longer than three digits.
fn escaped(text: &str) -> String {
    let mut word = String::from("$'");
    for c in text.chars() {
        if is_deceptive(c) || matches!(c, '\'' | '\\' | '!') {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                // Writing to a text never fails.
                let _ok = write!(word, "\\{byte:03o}");
            }
        } else {
            word.push(c);
        }
    }
    word.push('\'');
    word
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// As many shells as there are on the machine.
    fn read_by_a_shell(shell: &str, word: &str) -> String {
        let script = format!("printf %s {word}");
        let output = Command::new(shell).args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{script}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_shell_reads_every_text_as_it_was() {
        for text in [
            "ticket-1",
            "-rf",
            "it's",
            "'",
            "''",
            "\"$(touch /tmp/x)`id`\"",
            "a b  c",
            "$HOME ~ * ? [a] {b,c} #d",
            "a;b|c&d>e<f(g)",
            "back\\slash\\",
            "!!",
            "zażółć gęślą 日本 🙂",
            "\u{202e}txt.exe'\\!7",
            "a\u{200b}b\u{a0}c\u{2028}d",
        ] {
            assert_eq!(read_by_a_shell("bash", &word(text)), text, "{}", word(text));
        }
    }

    #[test]
    fn what_needs_no_quotes_has_none() {
        assert_eq!(word("order/2024-11.7"), "order/2024-11.7");
        assert_eq!(word("it's"), r"'it'\''s'");
    }

    #[test]
    fn what_deceives_the_eye_is_written_out() {
        let word = word("a\u{202e}b");
        assert_eq!(word, r"$'a\342\200\256b'");
    }

    #[test]
    fn a_command_names_the_gateway_unless_it_is_where_commands_look() {
        let command = |grpc: &str| resolve(&Key::new("-7", "k"), "added", Some(grpc.parse().unwrap()));
        let plain = "surveylab-gateway invitations resolve --collector=-7 --crk=k --as=added";
        assert_eq!(command("127.0.0.1:50051"), plain);
        assert_eq!(command("0.0.0.0:50051"), plain);
        assert_eq!(
            command("0.0.0.0:6000"),
            format!("{plain} --target=http://127.0.0.1:6000")
        );
        assert_eq!(command("[::]:6000"), format!("{plain} --target=http://[::1]:6000"));
    }
}
