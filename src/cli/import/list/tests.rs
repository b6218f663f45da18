use std::{
    fs::File,
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use encoding_rs::{UTF_16LE, WINDOWS_1250};

use super::*;
use crate::proto::AddRespondentRequest;

mod bounds;
mod checks;
mod files;
mod headers;
mod round_trip;

/// With a collector, as most lists have none.
fn options() -> Options {
    Options {
        collector: Some("c-1".into()),
        ..Options::default()
    }
}

fn mapped(map: &[&str]) -> Options {
    Options {
        map: map.iter().map(|mapping| mapping.parse().unwrap()).collect(),
        ..options()
    }
}

fn spooled(bytes: impl AsRef<[u8]>) -> Source {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes.as_ref()).unwrap();
    Source::Spooled(file)
}

fn path_of_fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/import/fixtures");
    fixtures.join(name)
}

fn fixture(name: &str) -> Source {
    Source::File(path_of_fixture(name))
}

fn read_fixture(name: &str) -> Vec<u8> {
    std::fs::read(path_of_fixture(name)).unwrap()
}

fn open(options: Options, bytes: impl AsRef<[u8]>) -> List {
    List::open(options, spooled(bytes)).unwrap()
}

fn refused(options: Options, bytes: impl AsRef<[u8]>) -> String {
    List::open(options, spooled(bytes)).err().unwrap().to_string()
}

fn rows(list: &mut List) -> Vec<Row> {
    list.rows().unwrap().map(Result::unwrap).collect()
}

/// The lines of rows, and of each all fields that have a value, or why it is bad.
fn told(rows: &[Row]) -> Vec<(u64, Vec<(&'static str, String)>)> {
    rows.iter().map(|row| (row.line, told_of(row))).collect()
}

fn told_of(row: &Row) -> Vec<(&'static str, String)> {
    match &row.content {
        Ok(request) => {
            assert_eq!(request.crk, row.crk);
            values(request)
        }
        Err(reason) => vec![("bad", reason.clone())],
    }
}

fn values(request: &AddRespondentRequest) -> Vec<(&'static str, String)> {
    let values = Field::ALL.map(|field| (field.name(), field.get(request).to_string()));
    values.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn copied(list: &mut List, wanted: impl Fn(u64) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    copy_rows(list, wanted, &mut out).unwrap();
    out
}

/// What is wanted of one row, without the collector.
macro_rules! row {
    ($line:literal, $($field:ident: $value:literal),* $(,)?) => {
        ($line, vec![("collector_id", "c-1".to_string()), $((stringify!($field), $value.to_string())),*])
    };
}
macro_rules! bad {
    ($line:literal, $reason:expr) => {
        ($line, vec![("bad", $reason.to_string())])
    };
}
use {bad, row};
