//! What a call's token costs: its hash, and the look at all hashes that the callers' file has.

use std::{fmt::Write as _, hint::black_box};

use criterion::{BenchmarkId, Criterion};
use surveylab_gateway::callers::{Callers, Credentials, Presented, Token, TokenHash};

/// With two tokens each, as while they are replaced.
pub fn tokens(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("authenticate");
    for count in [1, 100, 1000] {
        let mut file = String::new();
        let mut last = None;
        for caller in 0..count {
            let [old, new] = [(); 2].map(|()| Token::generate().unwrap());
            let (hash, other) = (old.hash(), new.hash());
            writeln!(
                file,
                "[[caller]]\nname = \"{caller}\"\ntokens = [\"{hash}\", \"{other}\"]"
            )
            .unwrap();
            last = Some(new);
        }
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), file).unwrap();
        let callers = Callers::open(path.path().into()).unwrap();
        let token = last.unwrap();
        group.bench_function(BenchmarkId::new("callers", count), |bencher| {
            bencher.iter(|| {
                let hash = TokenHash::of(black_box(token.expose().as_bytes())).unwrap();
                let credentials = Credentials {
                    token: Presented::Token(hash),
                    names: None,
                };
                callers.current().authenticate(&credentials).unwrap().clone()
            });
        });
    }
}
