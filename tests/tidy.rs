//! Properties of the repository itself, read from its text: who may name whom, where each dependency lives, what must
//! not be said where, and what documents and scripts claim about each other.
//!
//! `ARCHITECTURE.md` explains the layers; this keeps the page true. It compiles nothing and needs nothing but git.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// For each module, the other modules it may name. Lower layers come first.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("fault", &["sim"]), // with its feature only
    ("sim", &["fault"]), // likewise
    ("error", &["types"]),
    ("codec", &[]),
    ("api", &["types", "error", "codec"]),
    ("lmdb", &["error", "fault", "sim"]),
    ("wire", &["types", "error", "codec", "api", "sim"]),
    ("mvcc", &["types", "error", "codec", "api", "lmdb", "fault"]),
    ("client", &["types", "error", "codec", "api", "wire", "fault"]),
    ("raft", &["types", "error", "codec", "api", "lmdb", "wire", "mvcc", "fault", "sim"]),
    ("node", &["types", "error", "api", "lmdb", "wire", "client", "raft", "fault", "sim"]),
    ("recipes", &["types", "error", "client", "fault"]),
    ("bench", &["types", "error", "codec", "api", "lmdb", "wire", "mvcc", "raft"]), // with its feature only
    ("fuzz", &["types", "error", "codec", "api", "wire", "mvcc", "client", "raft"]), // likewise
];

/// For each dependency, the only modules that may name it.
const LIVES_IN: &[(&str, &[&str])] = &[
    ("arc_swap", &["mvcc", "raft", "bench"]),
    ("bincode", &["codec"]),
    (
        "bytes",
        &[
            "types", "codec", "api", "wire", "mvcc", "client", "raft", "node", "recipes", "bench",
            "fuzz",
        ],
    ),
    ("crc32c", &["wire", "mvcc", "raft"]),
    ("futures", &["sim", "wire", "client", "raft", "node", "recipes"]),
    ("getrandom", &["client", "raft"]),
    ("heed", &["lmdb", "mvcc"]),
    ("openraft", &["raft"]),
    ("openraft_macros", &[]), // a dependency of openraft, pinned
    ("openraft_rt", &[]),     // likewise
    ("openraft_rt_tokio", &["raft"]),
    ("rustix", &["lmdb"]),
    ("serde", &["types", "codec", "client", "raft", "recipes", "fuzz"]),
    ("serde_json", &["client"]),
    ("tarpc", &["wire"]),
    ("tokio_rustls", &["wire"]),
    ("tokio", &["sim", "wire", "client", "raft", "node", "recipes"]),
    ("tower", &["wire", "client", "raft", "node", "recipes"]),
    ("tracing", &["wire", "client", "raft", "recipes"]),
];

/// Dependencies that no user may meet: none of their types is in a public signature.
const HIDDEN: &[&str] = &[
    "bincode",
    "heed",
    "openraft",
    "openraft_rt",
    "openraft_rt_tokio",
    "tarpc",
    "tokio_rustls",
    "tower",
];

/// The one that is there for users of such a dependency.
const SHOWS_TOWER: &str = "src/recipes/discover.rs";

/// Words that would make applying a command depend on something else than the command and the state.
const NOT_IN_CORE: &[&str] = &[
    "tokio",
    "async",
    "await",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
    "getrandom",
    "rand",
    "thread",
    "spawn",
    "env::var",
];

/// What openraft takes for applied may still wait for the state's thread: reads by these would be too early.
const NOT_OPENRAFTS_WORD: &[&str] = &[
    "ensure_linearizable",
    "await_ready",
    "last_applied",
    "applied_index_at_least",
    "wait_for_recovery",
];

/// The only file that may be `unsafe`.
const UNSAFE: &str = "src/lmdb.rs";

/// Files past this many lines hold two ideas.
const LINES_MAX: usize = 700;

/// Bytes for the fuzzers, which say nothing to people.
const NO_TEXT: &str = "tests/corpus/";

/// Folders of some machine, and words of work that is not done. In halves, so that this file passes its own test.
const MACHINE_PATHS: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/tm", "p/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("/var/fol", "ders/"),
    concat!("C:", "\\"),
];
const UNFINISHED: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("MER", "GE:")];

#[test]
fn layers_point_downwards() {
    let mut faults = Faults::default();
    for source in sources() {
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == source.module) else {
            faults.add(&source.path, 1, format!("`{}` has no layer here", source.module));
            continue;
        };
        for (line, code) in source.code() {
            for named in names_after(code, "crate::") {
                if named != source.module && !allowed.contains(&named.as_str()) {
                    let module = &source.module;
                    faults.add(&source.path, line, format!("`{module}` names crate::{named}"));
                }
            }
        }
    }
    faults.check();
}

#[test]
fn each_dependency_lives_at_home() {
    let mut faults = Faults::default();
    for dependency in dependencies() {
        if !LIVES_IN.iter().any(|(name, _)| *name == dependency) {
            faults.add("Cargo.toml", 1, format!("{dependency} has no home in tests/tidy.rs"));
        }
    }
    for source in sources() {
        for (line, code) in source.code() {
            for (dependency, homes) in LIVES_IN {
                if names_crate(code, dependency) && !homes.contains(&source.module.as_str()) {
                    faults.add(&source.path, line, format!("{dependency} does not live here"));
                }
            }
        }
    }
    faults.check();
}

#[test]
fn no_public_signature_shows_a_hidden_dependency() {
    let sources = sources();
    let public_types: BTreeSet<String> = sources
        .iter()
        .flat_map(|source| source.product())
        .filter_map(|(_, code)| {
            let code = code.trim_start();
            let rest =
                code.strip_prefix("pub struct ").or_else(|| code.strip_prefix("pub enum "))?;
            words(rest).next().map(str::to_owned)
        })
        .collect();
    assert!(public_types.contains("Client"), "the public types are not found any more");
    let mut faults = Faults::default();
    for source in sources.iter().filter(|source| source.path != SHOWS_TOWER) {
        let hidden = source.imports_of(HIDDEN);
        let shows = |signature: &str| {
            let named = words(signature).find(|word| hidden.contains(*word)).map(str::to_owned);
            named.or_else(|| {
                HIDDEN.iter().find(|it| names_crate(signature, it)).map(|it| (*it).into())
            })
        };
        for (line, signature) in source.signatures() {
            let is_public = signature.starts_with("pub ");
            let implements = signature.starts_with("impl")
                && signature.split_once(" for ").is_some_and(|(_, of)| {
                    words(of).next().is_some_and(|of| public_types.contains(of))
                });
            if (is_public || implements)
                && let Some(name) = shows(&signature)
            {
                faults.add(&source.path, line, format!("`{name}` in a public signature"));
            }
        }
    }
    faults.check();
}

#[test]
fn the_core_depends_on_nothing_but_the_command() {
    let mut faults = Faults::default();
    for source in sources().iter().filter(|source| source.module == "mvcc" && !source.is_test) {
        for (line, code) in source.product() {
            for word in NOT_IN_CORE.iter().filter(|word| contains_word(code, word)) {
                faults.add(&source.path, line, format!("`{word}` in the core"));
            }
        }
    }
    faults.check();
}

#[test]
fn nobody_goes_by_openrafts_word_for_what_is_applied() {
    let mut faults = Faults::default();
    for source in sources().iter().filter(|source| source.module == "raft") {
        for (line, code) in source.product() {
            for word in NOT_OPENRAFTS_WORD.iter().filter(|word| contains_word(code, word)) {
                faults.add(&source.path, line, format!("`{word}`: ask raft/state"));
            }
        }
    }
    faults.check();
}

#[test]
fn nothing_is_unwrapped_or_unsafe() {
    let mut faults = Faults::default();
    for source in sources() {
        for (line, code) in source.product() {
            if code.contains(".unwrap()") || code.contains(".unwrap_err()") {
                faults.add(&source.path, line, "an unwrap outside of tests".into());
            }
        }
        for (line, code) in source.code() {
            if contains_word(code, "unsafe") && source.path != UNSAFE {
                faults.add(&source.path, line, format!("unsafe outside of {UNSAFE}"));
            }
        }
    }
    faults.check();
}

#[test]
fn every_file_says_what_it_is_and_is_one_idea() {
    let mut faults = Faults::default();
    for source in sources() {
        if !source.text.starts_with("//! ") {
            faults.add(&source.path, 1, "it does not begin with //!".into());
        }
    }
    for path in tracked().iter().filter(|path| path.ends_with(".rs")) {
        let lines = read(path).lines().count();
        if lines > LINES_MAX {
            faults.add(path, lines, format!("more than {LINES_MAX} lines"));
        }
    }
    faults.check();
}

#[test]
fn no_file_names_a_machine_or_is_unfinished() {
    let mut faults = Faults::default();
    for path in tracked().into_iter().filter(|path| !path.starts_with(NO_TEXT)) {
        for (line, text) in numbered(&read(&path)) {
            for place in MACHINE_PATHS {
                let own = |at: usize| {
                    let before = text[..at].chars().next_back();
                    !before.is_some_and(|it| it.is_alphanumeric() || "._-/".contains(it))
                };
                if text.match_indices(place).any(|(at, _)| own(at)) {
                    faults.add(&path, line, format!("{place} is a folder of some machine"));
                }
            }
            for word in UNFINISHED.iter().filter(|word| contains_word(text, word)) {
                faults.add(
                    &path,
                    line,
                    format!("{word}: finish it, or say it in the closing note"),
                );
            }
        }
    }
    faults.check();
}

#[test]
fn the_commands_are_the_same_everywhere() {
    let (makefile, readme) = (read("Makefile"), read("README.md"));
    let recipe = makefile.split_once("\nverify:\n").expect("the Makefile has a target verify").1;
    let recipe = recipe.lines().take_while(|line| line.starts_with('\t'));
    let commands: Vec<&str> =
        recipe.map(|line| line.trim().trim_start_matches("$(TIMED) ")).collect();
    // Those of the crate; the unpublished one has its own.
    let is_other =
        |it: &str| it.contains("-p quorate-bench") || it.contains("--no-default-features");
    let is_test = |it: &&&str| it.starts_with("cargo test") && !is_other(it);
    let tests: Vec<&&str> = commands.iter().filter(is_test).collect();
    assert_eq!(tests.len(), 1, "`make verify` runs the tests once: {commands:?}");
    let commands_of_readme: Vec<&str> =
        readme.lines().map(|line| line.split('#').next().unwrap_or("").trim()).collect();
    assert!(commands_of_readme.contains(tests[0]), "README.md does not say `{}`", tests[0]);
    let writes = ["--fix", "cargo update", "cargo fix"];
    for command in &commands {
        assert!(!writes.iter().any(|it| command.contains(it)), "`make verify` writes: {command}");
        assert!(!command.contains("fmt") || command.contains("--check"), "it writes: {command}");
    }

    let ci = read(".ci/run");
    assert!(ci.lines().any(|line| line.starts_with("make verify")), ".ci/run is not make verify");
    assert!(ci.contains("set -euo pipefail"), ".ci/run goes on after a failure");

    for command in commands_of_readme {
        if let Some(example) = command.strip_prefix("cargo run --example ") {
            let path = format!("examples/{example}.rs");
            assert!(root().join(&path).exists(), "README.md runs {path}, which does not exist");
        }
    }
}

#[test]
fn documents_name_files_that_exist() {
    let mut faults = Faults::default();
    for document in ["README.md", "ARCHITECTURE.md", "DESIGN.md", "CONTRIBUTING.md"] {
        for (line, text) in numbered(&read(document)) {
            for word in text.split('`').skip(1).step_by(2) {
                let is_path = word.ends_with(".rs") || word.starts_with("src/");
                let exists = |folder: &str| root().join(folder).join(word).exists();
                if is_path && !word.contains(' ') && !exists("") && !exists("src") {
                    faults.add(document, line, format!("there is no {word}"));
                }
            }
            let defined = text.strip_prefix('[').and_then(|text| text.split_once("]: "));
            let inline = text.split("](").skip(1).filter_map(|link| link.split(')').next());
            for target in inline.chain(defined.map(|(_, target)| target)) {
                let is_file = !target.starts_with("http") && !target.starts_with('#');
                if is_file && !root().join(target.split('#').next().unwrap_or("")).exists() {
                    faults.add(document, line, format!("there is no {target}"));
                }
            }
        }
    }
    faults.check();
}

#[test]
fn the_readme_has_the_numbers_of_the_code() {
    let readme = read("README.md");
    let limits = read("src/types/limits.rs");
    let mut seen = 0;
    let constants = limits.lines().filter_map(|line| line.trim().strip_prefix("pub const "));
    for line in constants.filter(|line| line.starts_with(char::is_uppercase)) {
        let (name, rest) = line.split_once(':').expect("a constant has a type");
        let (_, value) = rest.split_once('=').expect("a constant has a value");
        let factors = value.split(|c: char| !c.is_ascii_digit()).filter(|it| !it.is_empty());
        let value: u64 = factors.map(|it| it.parse::<u64>().expect("digits")).product();
        let row = readme.lines().find(|line| line.contains(&format!("`{name}`")));
        let row = row.unwrap_or_else(|| panic!("README.md has no row for {name}"));
        let cells: Vec<&str> = row.split(['|', ' ']).collect();
        assert!(cells.contains(&&*thousands(value)), "{name} is {}: {row}", thousands(value));
        seen += 1;
    }
    assert!(seen >= 12, "the limits are not found any more");

    let manifest = read("Cargo.toml");
    let field = |name: &str| {
        let line = manifest.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")));
        line.and_then(|rest| rest.split('"').next()).expect("the manifest has the field")
    };
    let (version, rust) = (field("version"), field("rust-version"));
    let short = version.rsplit_once('.').expect("a version has three parts").0;
    assert!(readme.contains(&format!("Status: {short}.")), "the status is not of {version}");
    assert!(readme.contains(&format!("Rust {rust} ")), "the oldest Rust is {rust}");
}

/// What is wrong, and where. One run shows all of it.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, path: &str, line: usize, mut what: String) {
        what.insert_str(0, &format!("{path}:{line}: "));
        self.0.push(what);
    }

    fn check(self) {
        assert!(self.0.is_empty(), "\n{}", self.0.join("\n"));
    }
}

/// A file below `src/`, except `lib.rs`.
struct Source {
    /// The top-level module that it is in.
    module: String,
    /// From the root of the repository.
    path: String,
    text: String,
    /// Whether it is compiled for tests only.
    is_test: bool,
}

impl Source {
    /// The lines that are not comments, numbered from one.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        numbered(&self.text).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// The same, without what is compiled for tests only.
    fn product(&self) -> Vec<(usize, &str)> {
        let mut lines = Vec::new();
        let mut code = self.code();
        while let Some((number, line)) = code.next() {
            if self.is_test {
                continue;
            }
            if line.trim() != "#[cfg(test)]" {
                lines.push((number, line));
                continue;
            }
            // The item ends where it began, with a brace or at once.
            let indent = line.len() - line.trim_start().len();
            let end = format!("{}}}", " ".repeat(indent));
            for (_, line) in code.by_ref() {
                let is_attribute = line.trim_start().starts_with("#[");
                let is_short = line.ends_with([';', ',']) && !line.starts_with(&end);
                let of_item = line.len() - line.trim_start().len() == indent;
                if line.starts_with(&end) || (of_item && is_short && !is_attribute) {
                    break;
                }
            }
        }
        lines
    }

    /// The beginnings of items and functions, each up to its body, in one line.
    fn signatures(&self) -> Vec<(usize, String)> {
        let mut found: Vec<(usize, String)> = Vec::new();
        let mut open = false;
        for (number, line) in self.product() {
            let line = line.trim();
            if open {
                let (_, signature) = found.last_mut().expect("one is open");
                signature.push(' ');
                signature.push_str(line);
            } else if line.starts_with("pub ") || line.starts_with("impl") {
                found.push((number, line.to_owned()));
            } else {
                continue;
            }
            let (_, signature) = found.last().expect("one was begun");
            let in_parentheses = signature.matches('(').count() > signature.matches(')').count();
            open = in_parentheses || !line.ends_with(['{', '}', ';', ',']);
        }
        found
    }

    /// The names that the file imports from some crates.
    fn imports_of(&self, crates: &[&str]) -> BTreeSet<String> {
        let text: String = self.code().map(|(_, line)| format!("{line}\n")).collect();
        let statements = text.split("\nuse ").skip(1).filter_map(|rest| rest.split(';').next());
        let of_crates = statements.filter(|statement| {
            crates.iter().any(|name| statement.trim_start().starts_with(&format!("{name}::")))
        });
        let is_type = |word: &&str| word.starts_with(char::is_uppercase);
        of_crates
            .flat_map(|it| words(it).filter(is_type).map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let texts: Vec<(PathBuf, String)> = files
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(&path).expect("source is UTF-8")))
        .collect();
    let tests: Vec<PathBuf> =
        texts.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let sources: Vec<Source> = texts
        .into_iter()
        .filter(|(path, _)| !path.ends_with("src/lib.rs"))
        .map(|(path, text)| {
            let is_test =
                tests.iter().any(|it| path.starts_with(it) || path == it.with_extension("rs"));
            let path = path.strip_prefix(root()).expect("it is below the root");
            let module = path.iter().nth(1).expect("it is below src").to_string_lossy();
            let module = module.trim_end_matches(".rs").to_owned();
            Source { module, path: path.to_string_lossy().replace('\\', "/"), text, is_test }
        })
        .collect();
    assert!(sources.len() > 40, "the sources are not found any more");
    sources
}

/// The modules in files of their own that a file declares for tests only, without extension.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let stem = path.file_stem().expect("a file has a name");
    let folder = path.parent().expect("a file is in a folder");
    let folder = if stem == "mod" || stem == "lib" { folder.to_owned() } else { folder.join(stem) };
    let lines: Vec<&str> = text.lines().collect();
    let declared = lines.windows(2).filter(|pair| pair[0].trim() == "#[cfg(test)]");
    let names = declared.filter_map(|pair| {
        let (_, name) = pair[1].split_once("mod ")?;
        name.strip_suffix(';').map(|name| folder.join(name))
    });
    names.collect()
}

/// The crates that the manifest asks for, as code names them.
fn dependencies() -> Vec<String> {
    let manifest = read("Cargo.toml");
    let section = manifest.split("\n[").find(|it| it.starts_with("dependencies]"));
    let lines = section.expect("there are dependencies").lines().skip(1);
    let names = lines.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.trim());
    let names: Vec<String> =
        names.filter(|name| !name.starts_with('#')).map(|name| name.replace('-', "_")).collect();
    assert!(names.len() > 10, "the dependencies are not found any more");
    names
}

/// The files that git knows, by their paths from the root.
fn tracked() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let listed = listed.expect("git is there");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).expect("names are UTF-8");
    let files = listed.split('\0').filter(|path| root().join(path).is_file());
    let files: Vec<String> = files.map(str::to_owned).collect();
    assert!(files.len() > 40, "the files are not found any more");
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_name(c)).filter(|word| !word.is_empty())
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `code` contains `word`, and not as a part of a longer one.
fn contains_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + word.len()..]);
        !before.ends_with(is_name) && !after.starts_with(is_name)
    })
}

/// Whether `code` names something of a crate, by the crate's own name.
fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = &code[..at];
        !before.ends_with(is_name) && (!before.ends_with("::") || before.ends_with(" ::"))
    })
}

/// What follows each `marker` in `code`, up to the end of the name.
fn names_after(code: &str, marker: &str) -> Vec<String> {
    let name = |rest: &str| match rest.chars().next() {
        Some(c @ ('{' | '*')) => c.to_string(),
        _ => rest.chars().take_while(|c| is_name(*c)).collect(),
    };
    code.split(marker).skip(1).map(name).collect()
}

/// A number as the README writes it.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}
