//! Every target over its seeds and over mutations of them, on any toolchain. What libFuzzer finds with coverage this
//! finds by luck, but it runs in seconds. `FUZZ_RUNS` is the number of mutations per target, `FUZZ_SEED` where chance
//! begins, `FUZZ_TARGET` the only target to run.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use crate::TARGETS;

/// Bytes that mean something to one parser or another.
const SIGILS: &[u8] = b"\n\"'[]{}()$%.*:;=&\\/?#-+0 ";

/// xorshift64*: the same inputs on every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit.max(1)
    }

    /// A few edits: bytes changed, put in, left out, doubled, or taken from another seed.
    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let (at, other) = (self.below(data.len() + 1), &seeds[self.below(seeds.len())]);
            let end = at + self.below(data.len() - at + 1).min(12);
            let from = self.below(other.len() + 1);
            let piece = &other[from..from + self.below(other.len() - from + 1).min(12)];
            match self.below(6) {
                0 => drop(data.splice(at..end, piece.iter().copied())),
                1 => drop(data.splice(at..end, [])),
                2 => drop(data.splice(at..at, [self.below(256) as u8])),
                3 => drop(data.splice(at..at, [SIGILS[self.below(SIGILS.len())]])),
                4 => drop(data.splice(at..at, data[at..end].to_vec())),
                _ => drop(data.splice(at..at, piece.iter().copied())),
            }
        }
        data
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let files = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a seed")).collect()
}

#[test]
fn no_input_breaks_an_invariant() {
    let only = env::var("FUZZ_TARGET").ok();
    for (name, run) in TARGETS.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        let seeds = seeds(name);
        let mut chance = Chance(number("FUZZ_SEED", 1) | 1 << 40);
        let mutated = (0..number("FUZZ_RUNS", 300)).map(|_| chance.mutate(&seeds));
        for data in seeds.iter().cloned().chain(mutated.collect::<Vec<_>>()) {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&data)));
            assert!(outcome.is_ok(), "{name}: \"{}\"", data.escape_ascii());
        }
    }
}

#[test]
fn every_target_has_its_file() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(here.join("Cargo.toml")).expect("the manifest");
    for (name, _) in TARGETS {
        let file =
            fs::read_to_string(here.join(format!("fuzz_targets/{name}.rs"))).expect("the target's file");
        assert!(file.contains(&format!("portcullis_fuzz::{name}::run")), "{name}");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}
