use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::{RngAlgorithm, TestError, TestRng, TestRunner},
};

use super::*;

fn directory(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(of)
}

/// The names in a directory, without their extensions.
fn names(of: &Path) -> BTreeSet<String> {
    fs::read_dir(of)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = fs::read_dir(directory("corpus").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn every_target_has_its_file_and_its_corpus() {
    let wanted: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&directory("fuzz_targets")), wanted);
    assert_eq!(names(&directory("corpus")), wanted);
    assert!(names(&directory("dictionaries")).is_subset(&wanted));
    let manifest = fs::read_to_string(directory("Cargo.toml")).unwrap();
    for name in &wanted {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
        let file = fs::read_to_string(directory("fuzz_targets").join(name).with_extension("rs")).unwrap();
        assert!(
            file.contains(&format!("surveylab_gateway::fuzz::{name}(data)")),
            "{name}"
        );
        assert!(!corpus(name).is_empty(), "{name}");
    }
}

/// Bytes, shown as a byte string.
#[derive(Clone)]
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// What a mutation does to an input, at a place in it.
#[derive(Clone, Debug)]
enum Edit {
    Insert(Vec<u8>),
    Overwrite(Vec<u8>),
    Remove(usize),
    Repeat(usize),
    /// What follows is another input's end.
    Splice(Index, Index),
}

fn edits() -> impl Strategy<Value = Edit> {
    let tokens: Vec<Vec<u8>> = [
        "\n", "%", "&", "=", "+", ",", "\\", "\"", "„", "”", "{", "}", "[", "]", "-", "0", "9", "true", "status", "ß",
        "ς", "İ", "\u{feff}", "\0", "{tU}", "{nU}", "s3cret", " ",
    ]
    .map(|token| token.as_bytes().to_vec())
    .to_vec();
    let bytes = || prop_oneof![vec(any::<u8>(), 1..5), select(tokens.clone())];
    prop_oneof![
        4 => bytes().prop_map(Edit::Insert),
        4 => bytes().prop_map(Edit::Overwrite),
        2 => (1..16_usize).prop_map(Edit::Remove),
        1 => (1..2_100_usize).prop_map(Edit::Repeat),
        1 => any::<(Index, Index)>().prop_map(|(other, at)| Edit::Splice(other, at)),
    ]
}

fn edited(mut input: Vec<u8>, edits: &[(Index, Edit)], corpus: &[Vec<u8>]) -> Vec<u8> {
    for (at, edit) in edits {
        let at = at.index(input.len() + 1);
        match edit {
            Edit::Insert(bytes) => drop(input.splice(at..at, bytes.iter().copied())),
            Edit::Overwrite(bytes) => {
                let end = input.len().min(at + bytes.len());
                input.splice(at..end, bytes.iter().copied());
            }
            Edit::Remove(count) => drop(input.drain(at..input.len().min(at + count))),
            Edit::Repeat(times) => {
                if let Some(byte) = input.get(at).copied() {
                    input.splice(at..at, vec![byte; *times]);
                }
            }
            Edit::Splice(other, from) => {
                let other = &corpus[other.index(corpus.len())];
                input.truncate(at);
                input.extend_from_slice(&other[from.index(other.len() + 1)..]);
            }
        }
    }
    input
}

/// Runs a target over its corpus and over random inputs, most of them made from the corpus.
fn holds(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(is, _)| *is == name).unwrap();
    let corpus = corpus(name);
    for input in &corpus {
        println!("{:?}", Input(input.clone()));
        target(input);
    }

    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(seed));
    let config = ProptestConfig {
        cases: 3_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let given = corpus.clone();
    let inputs = prop_oneof![
        1 => vec(any::<u8>(), 0..200),
        9 => (any::<Index>(), vec((any::<Index>(), edits()), 1..8)).prop_map(move |(of, edits)| {
            edited(given[of.index(given.len())].clone(), &edits, &given)
        }),
    ]
    .prop_map(Input);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng).run(&inputs, |Input(input)| {
        target(&input);
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, input)) => panic!("{name} does not hold for {input:?}: {why}"),
        Err(other) => panic!("{other}"),
    }
}

macro_rules! hold {
    ($($target:ident)*) => {
        /// A target that is not run here would be one for nightly fuzzing alone.
        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($target)),*]);
        }

        mod holds {
            $(
                #[test]
                fn $target() {
                    super::holds(stringify!($target));
                }
            )*
        }
    };
}

hold! {
    answer
    fault
    grpc_timeout
    messages
    page_token
    query
    redact
    request
    retry_after
    setting
    settings
}
