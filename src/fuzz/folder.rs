//! A folder for what a target keeps on a disk: one for each thread, used again by each run.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

/// Is removed with its thread, or by whoever cleans up after a process that was killed.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Self {
        let thread = std::thread::current();
        let name = format!("quorate-fuzz-{}-{:?}", std::process::id(), thread.id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("the folder for temporary files can be written");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing hangs on it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Lends the folder of this thread.
pub(super) fn in_folder(run: impl FnOnce(&Path)) {
    thread_local! {
        static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
    }
    FOLDER.with(|folder| run(&folder.get_or_init(Folder::make).0));
}
