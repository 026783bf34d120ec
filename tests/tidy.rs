//! Properties of the code itself: which module may name which, and where each dependency lives.
//!
//! `ARCHITECTURE.md` explains the layers. This test is what keeps that page true.

use std::fs;
use std::path::{Path, PathBuf};

/// For each module, the other modules it may name. Lower layers come first.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("error", &[]),
    ("codec", &["error"]),
    ("api", &["types", "error"]),
    ("lmdb", &["error"]),
    ("wire", &["api", "types", "error", "codec"]),
    ("mvcc", &["api", "types", "error", "codec", "lmdb"]),
    ("client", &["api", "types", "error", "codec", "wire"]),
    ("raft", &["mvcc", "api", "types", "error", "codec", "lmdb", "wire"]),
    ("node", &["raft", "client", "api", "types", "error"]),
    ("recipes", &["client", "types", "error", "codec"]),
];

/// For each dependency we wrap, the only modules that may name it.
const LIVES_IN: &[(&str, &[&str])] = &[
    ("openraft", &["raft"]),
    ("heed", &["mvcc", "raft", "lmdb"]),
    ("tarpc", &["wire", "raft", "client"]),
    ("bincode", &["codec"]),
    ("tokio", &["wire", "raft", "client", "node", "recipes"]),
];

/// Words that would make applying a command depend on something else than the command.
const NOT_IN_CORE: &[&str] = &["tokio", "async fn", "Instant", "SystemTime", "HashMap", "rand::"];

#[test]
fn layers_point_downwards() {
    let mut faults = Vec::new();
    for (module, path, text) in sources() {
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
            faults.push(format!("{}: `{module}` has no layer in tests/tidy.rs", path.display()));
            continue;
        };
        for (line, code) in code_lines(&text) {
            for named in names_after(code, "crate::") {
                let facade = named.starts_with(|c: char| c.is_uppercase() || c == '{' || c == '*');
                if facade || (named != module && !allowed.contains(&named.as_str())) {
                    faults.push(format!(
                        "{}:{line}: `{module}` names crate::{named}",
                        path.display()
                    ));
                }
            }
            for (dependency, homes) in LIVES_IN {
                if code.contains(&format!("{dependency}::")) && !homes.contains(&module.as_str()) {
                    faults.push(format!(
                        "{}:{line}: {dependency} does not live here",
                        path.display()
                    ));
                }
            }
            if module == "mvcc" {
                for word in NOT_IN_CORE.iter().filter(|word| contains_word(code, word)) {
                    faults.push(format!("{}:{line}: `{word}` in the core", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Every source file below `src/`, with the name of its top-level module.
fn sources() -> Vec<(String, PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let root = folders[0].clone();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "lib.rs") {
                let below = path.strip_prefix(&root).expect("path is below src");
                let first = below.components().next().expect("path is not empty");
                let module = first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
                let text = fs::read_to_string(&path).expect("source is UTF-8");
                found.push((module, path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {}", root.display());
    found
}

/// The lines that are not comments, numbered from one.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether `code` contains `word`, and not only as the end of a longer one.
fn contains_word(code: &str, word: &str) -> bool {
    let before = |at: usize| code[..at].chars().next_back();
    code.match_indices(word).any(|(at, _)| !before(at).is_some_and(char::is_alphanumeric))
}

/// What follows each `marker` in `code`, up to the end of the name.
fn names_after(code: &str, marker: &str) -> Vec<String> {
    let name = |rest: &str| match rest.chars().next() {
        Some(c @ ('{' | '*')) => c.to_string(),
        _ => rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect(),
    };
    code.split(marker).skip(1).map(name).collect()
}
